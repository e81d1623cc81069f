"""Errors by band, of tones whose band is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa_sep.evaluation.methods import MixtureBaseline, OracleBaseline
from tfswa_sep.evaluation.metrics import decibels
from tfswa_sep.evaluation.multitrack import find_songs
from training.analysis.error_spectrum import EDGES, main, song_errors

RATE = 44_100
TONES = {"vocals": (150.0, 0.4), "other": (1000.0, 0.2)}  # Hz, of full scale
BANDS = [next(i for i, edge in enumerate(EDGES[1:]) if hertz < edge) for hertz, _ in TONES.values()]


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    time = np.arange(12 * RATE) / RATE  # longer than a block
    (tmp_path / "songs/tones").mkdir(parents=True)
    for stem, (hertz, level) in TONES.items():
        tone = level * np.sin(2 * np.pi * hertz * time)
        soundfile.write(tmp_path / f"songs/tones/{stem}.wav", np.stack([tone, tone], axis=1), RATE)
    return tmp_path / "songs"


def test_what_the_mixture_adds_to_a_stem_is_the_other(songs: Path) -> None:
    (song,) = find_songs(songs)
    energies = song_errors(song, (MixtureBaseline(), OracleBaseline(binary=False)))
    assert set(energies) == set(TONES)  # the silent ones do not count
    for (stem, (power, errors)), own, other in zip(energies.items(), BANDS, reversed(BANDS), strict=True):
        assert power[own] > 0.999 * power.sum(), stem
        assert errors[0, other] > 0.999 * errors[0].sum(), stem
        assert errors[1].sum() < 0.01 * errors[0].sum(), stem  # tones so far apart a mask can tell
    ratio = decibels(energies["vocals"][0], energies["other"][0])
    assert ratio[BANDS[0]] > 40 and ratio[BANDS[1]] < -40
    assert energies["vocals"][0][-1] < 1e-9 * energies["vocals"][0].sum()  # where a block ends is no click
    loud, soft = (energies[stem][0].sum() for stem in TONES)
    assert 10 * np.log10(loud / soft) == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("missing", ["songs", "model"])
def test_what_is_not_there_is_one_line(missing: str, songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"songs": str(songs), "model": "small"} | {missing: "nowhere.onnx"}
    with pytest.raises(SystemExit) as caught:
        main(["--data", words["songs"], "--model", words["model"]])
    assert caught.value.code == {"songs": 3, "model": 4}[missing]
    printed = capsys.readouterr().err
    assert "nowhere.onnx" in printed and len(printed.splitlines()) == 1


def test_the_command_prints_a_row_a_stem(songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(songs)]) == 0
    printed = capsys.readouterr().out
    assert "vocals" in printed and "other" in printed and "drums" not in printed
