"""PEASS through its own process: the numbers of python-peass, on half a second of sound, which takes it seconds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa_sep.cli import main
from tfswa_sep.errors import UsageError
from tfswa_sep.evaluation import peass
from tfswa_sep.evaluation.methods import FolderMethod
from tfswa_sep.evaluation.multitrack import find_songs
from tfswa_sep.evaluation.run import evaluate

RATE = 44_100


def noise(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 0.1, (RATE // 2, 1)).astype(np.float32).astype(float)


@pytest.mark.slow
def test_the_scores_are_those_of_the_package_and_it_is_not_imported_here(tmp_path: Path) -> None:
    official = pytest.importorskip("peass")
    vocals, drums, guess = noise(1), noise(2), (0.8 * noise(1) + 0.2 * noise(2)).astype(np.float32)
    for place, stems in (("data", {"vocals": vocals, "drums": drums}), ("found", {"vocals": guess})):
        (tmp_path / place / "song").mkdir(parents=True)
        for stem, samples in stems.items():
            soundfile.write(tmp_path / place / "song" / f"{stem}.wav", samples, RATE, subtype="FLOAT")
    config = official.DecompositionConfiguration(destination_directory=str(tmp_path))
    expected = official.predict_perceptual_evaluation_scores(
        [vocals, drums], guess.astype(float), config, sampling_frequency_hz=float(RATE)
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "peass"]:
        del sys.modules[name]
    method = FolderMethod(tmp_path / "found", "found")
    run = evaluate(find_songs(tmp_path / "data"), [method], data="data", metrics=("peass",))
    score = run.methods[0].songs[0].stems["vocals"]
    for name, long in peass.NAMES.items():
        assert score[f"peass_{name}"] == pytest.approx(getattr(expected, long), abs=1e-3)
    assert "peass" not in sys.modules


def test_silence_has_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peass, "check_installed", lambda: None)
    for signals in (
        (0 * noise(1), [noise(2)], noise(1)),
        (noise(1), [], noise(1)),
        (noise(1), [noise(2)], 0 * noise(1)),
    ):
        assert peass.peass_scores(*signals, RATE) == dict.fromkeys(("ops", "tps", "ips", "aps"))


def test_a_failure_of_the_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "peass.py").write_text("raise ValueError('the signal is too short')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    monkeypatch.setattr(peass, "check_installed", lambda: None)
    with pytest.raises(UsageError, match=r"python-peass failed: ValueError: the signal is too short$"):
        peass.peass_scores(noise(1), [noise(2)], noise(1), RATE)


def test_that_it_is_missing_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main.run(["eval", "--data", "nowhere", "--metrics", "peass"]) == 2
    assert "--metrics peass needs python-peass: " in capsys.readouterr().err
