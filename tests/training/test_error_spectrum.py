"""Errors per band, of tones in known bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa_sep.evaluation.methods import MixtureBaseline, OracleBaseline
from tfswa_sep.evaluation.metrics import decibels
from tfswa_sep.evaluation.multitrack import BLOCK_SECONDS, find_songs
from training.analysis.error_spectrum import EDGES, main, song_errors

RATE = 44_100
TONES = {"vocals": (150.0, 0.4), "other": (1000.0, 0.2)}  # Hz, of full scale
BANDS = [next(i for i, edge in enumerate(EDGES[1:]) if hertz < edge) for hertz, _ in TONES.values()]


def write_tones(root: Path, *, seconds: int = 1) -> Path:
    """Write a folder with one song, with one stem for each of TONES."""
    time = np.arange(seconds * RATE) / RATE
    (root / "songs/tones").mkdir(parents=True)
    for stem, (hertz, level) in TONES.items():
        tone = level * np.sin(2 * np.pi * hertz * time)
        soundfile.write(root / f"songs/tones/{stem}.wav", np.stack([tone, tone], axis=1), RATE)
    return root / "songs"


@pytest.mark.slow
def test_errors_are_in_the_band_of_the_other_stem(tmp_path: Path) -> None:
    (song,) = find_songs(write_tones(tmp_path, seconds=BLOCK_SECONDS + 2))
    energies = song_errors(song, (MixtureBaseline(), OracleBaseline(binary=False)))
    assert set(energies) == set(TONES)  # silent stems do not count
    for (stem, (power, errors)), own, other in zip(energies.items(), BANDS, reversed(BANDS), strict=True):
        assert power[own] > 0.999 * power.sum(), stem
        assert errors[0, other] > 0.999 * errors[0].sum(), stem
        assert errors[1].sum() < 0.01 * errors[0].sum(), stem  # a mask separates tones so far apart
    ratio = decibels(energies["vocals"][0], energies["other"][0])
    assert ratio[BANDS[0]] > 40 and ratio[BANDS[1]] < -40
    assert energies["vocals"][0][-1] < 1e-9 * energies["vocals"][0].sum()  # no clicks between blocks
    loud, soft = (energies[stem][0].sum() for stem in TONES)
    assert 10 * np.log10(loud / soft) == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("missing", ["songs", "model"])
def test_a_missing_file_is_one_line(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"songs": str(write_tones(tmp_path)), "model": "small"} | {missing: "nowhere.onnx"}
    with pytest.raises(SystemExit) as caught:
        main(["--data", arguments["songs"], "--model", arguments["model"]])
    assert caught.value.code == {"songs": 3, "model": 4}[missing]
    printed = capsys.readouterr().err
    assert "nowhere.onnx" in printed and len(printed.splitlines()) == 1


@pytest.mark.slow
def test_the_command_prints_a_row_per_stem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(write_tones(tmp_path))]) == 0
    printed = capsys.readouterr().out
    assert "vocals" in printed and "other" in printed and "drums" not in printed
