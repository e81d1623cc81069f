"""The benchmark measures what it says: whole processes, on songs of the asked length. No test is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.benchmark import Measurement, Run, benchmark, make_song, measure


def test_a_song_is_looped_to_the_asked_length(tmp_path: Path) -> None:
    loop = np.arange(1, 1001, dtype=np.int16)
    soundfile.write(tmp_path / "loop.wav", loop, 8000)
    make_song(tmp_path / "loop.wav", tmp_path / "long.wav", minutes=0.01)
    found, rate = soundfile.read(tmp_path / "long.wav", dtype="int16")
    assert rate == 8000
    np.testing.assert_array_equal(found, np.tile(loop, 5)[:4800])


def test_a_process_is_measured_with_what_it_spends() -> None:
    little = measure([sys.executable, "-c", "pass"])
    much = little.memory + (100 << 20)  # what is resident here counts too
    run = measure([sys.executable, "-c", f"held = bytearray(b'1') * {much}"])
    assert run.memory > much
    assert run.wall > 0
    assert run.cpu > 0


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="ended with 3: no such stem"):
        measure([sys.executable, "-c", "import sys; print('no such stem'); sys.exit(3)"])


def test_the_median_counts_and_the_factor_is_of_the_music() -> None:
    runs = (Run(9.0, 1.0, 10), Run(3.0, 3.0, 30), Run(4.0, 2.0, 20))
    measurement = Measurement(0.5, "onnx", 2, runs)
    assert measurement.median == Run(4.0, 2.0, 20)
    assert measurement.real_time_factor == pytest.approx(4.0 / 30)


def test_every_setting_is_run_as_the_user_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "loop.wav", np.ones(800, dtype=np.int16), 8000)
    said = tmp_path / "said.txt"
    command = tmp_path / "command"
    command.write_text(f'#!/bin/sh\ntest -f "$1" && test -d "$3" && echo "$@" >> {said}\n')
    command.chmod(0o755)
    found = benchmark(
        str(command),
        tmp_path / "loop.wav",
        minutes=[0.01, 0.02],
        backends=["onnx"],
        threads=[None, 2],
        runs=2,
        extra=["--stems", "vocals"],
        folder=tmp_path,
    )
    assert [(each.minutes, each.threads, len(each.runs)) for each in found] == [
        (0.01, None, 2),
        (0.01, 2, 2),
        (0.02, None, 2),
        (0.02, 2, 2),
    ]
    first, _, third, *_ = (line.split() for line in said.read_text().splitlines())
    assert first[:2] == [str(tmp_path / "song_0.01_minutes.wav"), "--out"]
    assert first[3:] == ["--backend", "onnx", "--quiet", "--stems", "vocals"]
    assert third[3:] == ["--backend", "onnx", "--quiet", "--threads", "2", "--stems", "vocals"]
    assert len(capsys.readouterr().out.splitlines()) == 4
