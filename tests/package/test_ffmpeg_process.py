"""An ffmpeg that hangs, is slow, or prints bytes that are not text."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import write_song

from tfswa_sep.audio import ffmpeg_process
from tfswa_sep.audio.decode import open_audio
from tfswa_sep.cli import main

FFMPEG = shutil.which("ffmpeg")
pytestmark = pytest.mark.skipif(FFMPEG is None or sys.platform != "linux", reason="needs ffmpeg and /proc")
Fake = Callable[..., None]
BUSY = "timeout 2 sh -c 'while :; do :; done'"  # for longer than the patience below
NO_TEXT = r"""printf '[error] \377\376\n' >&2
case "$*" in
  *framecrc*) printf '# \377\376\n';;
  *ffmetadata*) printf '\377=\376\n';;
esac"""


@pytest.fixture
def fake_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """fake_ffmpeg(what a shell does first, patience=seconds): the real one follows, if that ends."""

    def write(script: str, *, patience: float) -> None:
        (tmp_path / "bin").mkdir()
        program = tmp_path / "bin/ffmpeg"
        program.write_text(f'#!/bin/sh\n{script}\n{FFMPEG} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setattr(ffmpeg_process, "PATIENCE", patience)

    return write


def write_m4a(path: Path) -> Path:
    song = write_song(path.with_suffix(".song.wav"), seconds=1)
    os.spawnv(os.P_WAIT, str(FFMPEG), ["ffmpeg", "-v", "error", "-i", str(song), str(path)])
    song.unlink()
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    return main.run(list(words)), capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "typed", "code", "says"),
    (
        (
            "exec sleep 100",
            "song.m4a",
            3,
            "song.m4a cannot be read (ffmpeg did nothing for 0.3 s): check the disk",
        ),
        ("exec sleep 100", "song.wav --format m4a", 5, ".m4a (ffmpeg did nothing for 0.3 s): check the disk"),
        (
            "sleep 100",
            "song.wav --stem-file",
            5,
            "song.stem.mp4 (ffmpeg did nothing for 0.3 s): check the disk",
        ),
    ),
)
def test_one_that_hangs_is_killed(
    work: Path,
    fake_ffmpeg: Fake,
    capsys: pytest.CaptureFixture[str],
    script: str,
    typed: str,
    code: int,
    says: str,
) -> None:
    write_m4a(work / "song.m4a")
    fake_ffmpeg(script, patience=0.3)
    ended, err = run(capsys, *typed.split())
    errors = [line for line in err.splitlines() if line.startswith("tfswa-sep: ")]
    assert ended == code and len(errors) == 1 and says in errors[0], err
    assert not (work / "song").exists()


def test_one_that_hangs_in_the_middle(
    work: Path, fake_ffmpeg: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    write_m4a(work / "song.m4a")
    fake_ffmpeg(f'{FFMPEG} "$@" | head -c 20000; sleep 100', patience=0.3)
    code, err = run(capsys, "song.m4a")
    assert code == 3 and "song.m4a cannot be read (ffmpeg did nothing" in err


def test_one_that_hangs_when_it_checks_what_was_written(
    work: Path, fake_ffmpeg: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ffmpeg('case "$*" in *framecrc*) sleep 100;; esac', patience=0.3)
    code, err = run(capsys, "song.wav", "--format", "m4a")
    assert code == 5 and "(ffmpeg did nothing for 0.3 s)" in err
    assert not (work / "song").exists()


@pytest.mark.slow
def test_one_that_is_slow_is_not_killed(work: Path, fake_ffmpeg: Fake) -> None:
    write_m4a(work / "song.m4a")
    fake_ffmpeg(BUSY, patience=1)
    with open_audio(work / "song.m4a") as song:
        assert sum(block.shape[1] for block in song.blocks()) >= 44_100


@pytest.mark.slow
def test_a_pause_of_ours_is_no_hang(work: Path, fake_ffmpeg: Fake) -> None:
    """While the network computes, ffmpeg waits in vain for its output to be read."""
    write_m4a(work / "song.m4a")
    fake_ffmpeg("true", patience=1)
    with open_audio(work / "song.m4a") as song:
        blocks = song.blocks(block=1000)
        next(blocks)
        time.sleep(2)
        list(blocks)


@pytest.mark.parametrize("typed", ("song.m4a", "song.wav --stem-file"))
def test_what_is_not_text(
    work: Path, fake_ffmpeg: Fake, capsys: pytest.CaptureFixture[str], typed: str
) -> None:
    write_m4a(work / "song.m4a")
    fake_ffmpeg(NO_TEXT, patience=60)
    code, err = run(capsys, *typed.split())
    assert code in (0, 3, 5) and "bug" not in err and "Traceback" not in err, err
