"""Songs that are mono, at 48 kHz, too short, too long, missing, silent or perfect, against numbers known otherwise."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray
from rich.console import Console

from tfswa_sep.errors import InputError
from tfswa_sep.evaluation.bsseval import HIGHEST_SAR
from tfswa_sep.evaluation.methods import FolderMethod
from tfswa_sep.evaluation.multitrack import find_songs
from tfswa_sep.evaluation.report.tables import song_tables
from tfswa_sep.evaluation.results import MethodScores, SongScore
from tfswa_sep.evaluation.run import evaluate

RATE = 44_100
Signal = NDArray[np.float64]


def noise(seed: int, *, seconds: float = 3.0, channels: int = 2) -> Signal:
    """(n, c), in steps of 16 bits as true stems are."""
    values = np.random.default_rng(seed).normal(0, 0.1, (round(seconds * RATE), channels))
    return np.round(values * 2**15) / 2**15


def write(folder: Path, stems: dict[str, Signal], *, rate: int = RATE) -> None:
    folder.mkdir(parents=True)
    for stem, samples in stems.items():
        soundfile.write(folder / f"{stem}.wav", samples, rate, subtype="FLOAT")


def scored(tmp_path: Path, *, metrics: tuple[str, ...] = ("museval",)) -> MethodScores:
    method = FolderMethod(tmp_path / "found", "found")
    return evaluate(find_songs(tmp_path / "data"), [method], data="data", metrics=metrics).methods[0]


def assert_museval_s(song: SongScore, true: dict[str, Signal], guess: dict[str, Signal]) -> None:
    """Compare every median and count of frames with those of the package, for arrays of one length."""
    import museval

    with np.errstate(all="ignore"):
        expected = museval.evaluate(
            list(true.values()), [signal.astype(np.float32).astype(float) for signal in guess.values()]
        )
    for name, ratios in zip(("sdr", "isr", "sir", "sar"), expected, strict=True):
        for stem, frames in zip(true, ratios, strict=True):
            found = song.stems[stem].frames[f"museval_{name}"]
            assert (found.frames, found.undefined) == (frames.size, np.sum(~np.isfinite(frames)))
            highest = HIGHEST_SAR if name == "sar" else np.inf
            median = np.median(np.minimum(frames[np.isfinite(frames)], highest))
            assert found.median == pytest.approx(median, abs=1e-6)


@pytest.mark.slow
def test_mono_stems_are_those_of_museval_in_mono(tmp_path: Path) -> None:
    true = {"vocals": noise(1, channels=1), "drums": noise(2, channels=1)}
    guess = {
        "vocals": 0.8 * true["vocals"] + 0.1 * true["drums"],
        "drums": true["drums"] + noise(3, channels=1) / 9,
    }
    write(tmp_path / "data" / "song", true)
    write(tmp_path / "found" / "song", guess)
    (song,) = scored(tmp_path).songs
    assert_museval_s(song, true, guess)


@pytest.mark.slow
def test_a_stem_that_is_silent_for_a_second_and_estimates_of_other_lengths(tmp_path: Path) -> None:
    true = {"vocals": noise(1), "drums": noise(2)}
    true["vocals"][RATE : 2 * RATE] = 0
    guess = {stem: 0.8 * signal + 0.1 * noise(3) for stem, signal in true.items()}
    guess["drums"][-RATE // 2 :] = 0
    write(tmp_path / "data" / "song", true)
    too_long = np.concatenate([guess["vocals"], noise(4)])
    write(tmp_path / "found" / "song", {"vocals": too_long, "drums": guess["drums"][: -RATE // 2]})
    (song,) = scored(tmp_path).songs
    assert song.stems["drums"].frames["museval_sdr"].undefined == 1
    assert_museval_s(song, true, guess)
    assert tuple(song.warnings) == (
        "vocals has 264600 frames, the mixture 132300",
        "drums has 110250 frames, the mixture 132300",
    )


@pytest.mark.slow
def test_a_shorter_reference_is_silent_from_its_end_on(tmp_path: Path) -> None:
    vocals, drums = noise(1), noise(2)
    write(tmp_path / "data" / "song", {"vocals": vocals, "drums": drums[: 2 * RATE]})
    padded = np.concatenate([drums[: 2 * RATE], np.zeros((RATE, 2))])
    guess = {"vocals": vocals + padded / 10, "drums": padded + noise(3) / 10}
    write(tmp_path / "found" / "song", guess)
    (song,) = scored(tmp_path).songs
    assert song.stems["drums"].frames["museval_sdr"].undefined == 1
    assert_museval_s(song, {"vocals": vocals, "drums": padded}, guess)


@pytest.mark.slow
def test_references_longer_than_the_mixture_count_up_to_its_end(tmp_path: Path) -> None:
    whole = {"vocals": noise(1, seconds=3.5), "drums": noise(2, seconds=3.5)}
    true = {stem: signal[: 3 * RATE] for stem, signal in whole.items()}
    write(tmp_path / "data" / "song", {**whole, "mixture": true["vocals"] + true["drums"]})
    guess = {stem: 0.8 * signal + noise(3) / 10 for stem, signal in true.items()}
    write(tmp_path / "found" / "song", guess)
    (song,) = scored(tmp_path).songs
    assert_museval_s(song, true, guess)
    assert tuple(song.warnings) == tuple(
        f"the true {stem} has 154350 frames, the mixture 132300: the excess is ignored" for stem in true
    )


@pytest.mark.slow
def test_references_and_estimates_at_48_khz_score_as_at_their_own_rate(tmp_path: Path) -> None:
    """Below 20 kHz, which is all that resampling keeps, at 20 dB by construction."""
    stems = {"vocals": noise(1), "drums": noise(2)}
    at_48 = {stem: soxr.resample(signal, RATE, 48_000) for stem, signal in stems.items()}
    write(tmp_path / "data" / "song", at_48, rate=48_000)
    write(tmp_path / "found" / "song", {stem: 0.9 * signal for stem, signal in at_48.items()}, rate=48_000)
    (song,) = scored(tmp_path).songs
    for stem in stems:
        assert song.stems[stem]["sdr"] == pytest.approx(20, abs=1e-3)
        assert song.stems[stem]["museval_sdr"] == pytest.approx(20, abs=0.01)
    assert len(song.warnings) == 2 and all("48000 Hz" in warning for warning in song.warnings)


@pytest.mark.slow
def test_a_perfect_estimate_is_finite_or_undefined_and_recorded(tmp_path: Path) -> None:
    true = {"vocals": noise(1), "drums": noise(2)}
    write(tmp_path / "data" / "song", true)
    write(tmp_path / "found" / "song", true)
    song = evaluate(
        find_songs(tmp_path / "data"),
        [FolderMethod(tmp_path / "found", "found")],
        data="data",
        metrics=("museval", "fast", "perceptual"),
    )
    assert "NaN" not in song.to_json() and "Infinity" not in song.to_json()
    score = song.methods[0].songs[0].stems["vocals"]
    assert (score["sdr"] or 0) > 90
    assert score["museval_sdr"] is None  # infinite in every frame, as museval has it
    assert score.frames["museval_sdr"].undefined == 3
    assert score["log_wmse"] == pytest.approx(-4 * np.log(1e-8))


def test_missing_songs_and_stems_are_counted_in_the_table(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two", "three", "four")):
        write(tmp_path / "data" / name, {"vocals": noise(number, seconds=1), "drums": noise(9, seconds=1)})
    estimates = {"vocals": 0.9 * noise(0, seconds=1), "drums": 0.9 * noise(9, seconds=1)}
    write(tmp_path / "found" / "one", estimates)
    write(tmp_path / "found" / "test" / "four", {"vocals": 0.99 * noise(3, seconds=1)})  # museval's layout
    method = scored(tmp_path, metrics=())
    mean, count = method.mean("vocals")
    assert mean is not None and count == 2
    assert mean["sdr"] == pytest.approx(30, abs=0.01)
    console = Console(width=200, file=io.StringIO())
    console.print(*song_tables(method, "data"))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "missing songs: 2 (of 4): three, two" in said
    assert "four, drums: no estimate" in said and "songs without a score, per stem: drums 1 (of 4" in said
    with pytest.raises(InputError, match="no estimates of the song"):
        evaluate(find_songs(tmp_path / "data"), [FolderMethod(tmp_path / "nowhere", "nowhere")], data="data")


def test_a_song_in_two_layouts_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "data" / "song", {"vocals": noise(1), "drums": noise(2)})
    write(tmp_path / "found" / "song", {"vocals": noise(1)})
    write(tmp_path / "found" / "test" / "song", {"vocals": noise(2)})
    with pytest.raises(InputError, match="hold stems of the same song: remove one"):
        scored(tmp_path)
    (tmp_path / "found" / "test" / "song" / "vocals.wav").unlink()
    (tmp_path / "found" / "test" / "song").rmdir()
    for stem in ("accompaniment", "instrumental"):  # two names for one stem
        soundfile.write(tmp_path / "found" / "song" / f"{stem}.wav", noise(2), RATE)
    with pytest.raises(InputError, match="are the same stem: remove one"):
        scored(tmp_path)
