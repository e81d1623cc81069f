"""BSSEval against museval itself, on the excerpt that stempeg brings and on songs that make it stumble."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa_sep.evaluation import bsseval, musdb
from tfswa_sep.evaluation.bsseval_v4 import References
from tfswa_sep.evaluation.methods import FolderMethod
from tfswa_sep.evaluation.multitrack import find_songs
from tfswa_sep.evaluation.report.tables import differences
from tfswa_sep.evaluation.results import EXCERPTS, SongScore
from tfswa_sep.evaluation.run import evaluate

RATE = 44_100
Signal = NDArray[np.float64]


def noise(seed: int, seconds: float = 1.5, channels: int = 1) -> Signal:
    """(n, c), in steps of 16 bits as true stems are."""
    values = np.random.default_rng(seed).normal(0, 0.1, (round(seconds * RATE), channels))
    return np.round(values * 2**15) / 2**15


def write(folder: Path, **stems: Signal) -> None:
    folder.mkdir(parents=True)
    for stem, samples in stems.items():
        soundfile.write(folder / f"{stem}.wav", samples, RATE, subtype="FLOAT")


def scored(tmp_path: Path, *, metrics: tuple[str, ...] = ("museval",)) -> SongScore:
    method = FolderMethod(tmp_path / "found", "found", alone=True)
    return evaluate(find_songs(tmp_path / "data"), [method], data="data", metrics=metrics).methods[0].songs[0]


@pytest.mark.slow
def test_museval_gets_what_it_would_read_itself(tmp_path: Path) -> None:
    """Mono stems, an estimate that is too short: the same frames as museval makes of the same arrays."""
    import museval

    true = {"drums": noise(1), "bass": noise(2)}
    guess = {"drums": 0.8 * noise(1) + 0.2 * noise(2) + 0.05 * noise(3), "bass": 0.9 * noise(2)[:-500]}
    write(tmp_path / "data" / "song", **true)
    write(tmp_path / "found", **guess)
    song = scored(tmp_path)
    padded = np.stack([guess["drums"], np.pad(guess["bass"], ((0, 500), (0, 0)))]).astype(np.float32)
    expected = museval.evaluate(np.stack(list(true.values())), padded.astype(np.float64))
    for name, ratios in zip(("sdr", "isr", "sir", "sar"), expected, strict=True):
        for index, stem in enumerate(("drums", "bass")):
            found = song.stems[stem].frames[f"museval_{name}"]
            assert found.frames == ratios.shape[1]
            assert found.median == pytest.approx(np.median(ratios[index]), abs=1e-6)


def test_silence_and_short_songs_are_skipped_and_reported(tmp_path: Path) -> None:
    silent = np.zeros_like(noise(1))
    write(tmp_path / "data" / "song", drums=noise(1), bass=noise(2), other=noise(3))
    write(tmp_path / "found", drums=0.9 * noise(1), bass=silent, other=noise(4))
    song = scored(tmp_path)
    assert song.stems["drums"]["museval_sdr"] is not None
    assert song.stems["bass"]["museval_sdr"] is None
    assert song.stems["bass"]["sdr"] == pytest.approx(0, abs=0.01)
    assert song.skipped["bass"] == "BSSEval is undefined for a silent estimate"
    stems, why = bsseval.usable({"drums": noise(1)[:100]}, {"drums": noise(1)[:100]})
    assert not stems
    assert "too few" in why["drums"]


def test_a_stem_alone_has_its_sdr(tmp_path: Path) -> None:
    """A model of drums: museval's SDR needs no other stem, its SIR and SAR do."""
    write(tmp_path / "data" / "song", drums=noise(1), bass=noise(2))
    write(tmp_path / "found", drums=noise(1) + 0.1 * noise(2))
    song = scored(tmp_path, metrics=("museval", "fast"))
    for metric in ("museval", "fast"):
        assert song.stems["drums"][f"{metric}_sdr"] == pytest.approx(20, abs=0.1)
        assert song.stems["drums"][f"{metric}_sir"] is None
    assert song.skipped["drums"] == bsseval.ALONE


def test_a_song_shorter_than_a_frame_is_one_frame(tmp_path: Path) -> None:
    write(tmp_path / "data" / "song", drums=noise(1, 0.5), bass=noise(2, 0.5))
    write(tmp_path / "found", drums=noise(1, 0.5) + noise(3, 0.5), bass=noise(2, 0.5))
    frames = scored(tmp_path).stems["drums"].frames["museval_sdr"]
    assert (frames.frames, frames.undefined) == (1, 0)
    assert frames.median == pytest.approx(0, abs=0.1)


@pytest.mark.slow
def test_the_quick_numbers_are_version_3_and_their_difference_is_printed(tmp_path: Path) -> None:
    import museval

    true, mixed = {"drums": noise(1), "bass": noise(2)}, 0.2 * noise(1) + 0.2 * noise(2) + 0.1 * noise(3)
    guess = {stem: 0.7 * signal + mixed for stem, signal in true.items()}
    write(tmp_path / "data" / "song", **true)
    write(tmp_path / "found", **guess)
    method = FolderMethod(tmp_path / "found", "found", alone=True)
    songs = find_songs(tmp_path / "data")
    found = evaluate(songs, [method], data="data", metrics=("museval", "fast"))
    drums = found.methods[0].songs[0].stems["drums"]
    assert drums["fast_sdr"] == pytest.approx(drums["museval_sdr"], abs=1e-6)  # needs no filter
    signals = [np.stack([side[stem][:, 0] for stem in true]) for side in (true, guess)]
    _, sir, sar, _ = museval.metrics.bss_eval_sources(*signals, compute_permutation=False)
    assert drums["fast_sir"] == pytest.approx(sir[0].item(), abs=0.05)
    assert drums["fast_sar"] == pytest.approx(sar[0].item(), abs=0.05)
    lines = differences(found)
    assert lines[0].startswith("found: SDR fast - v4 is +0.00 dB on average")
    assert lines[1].startswith("found: SIR fast - v4 is ")


def music(*stems: str, seconds: float) -> list[Signal]:
    """Stems of the demo song from its third second on, in steps of 16 bits."""
    folder = Path(__file__).parents[2] / "examples" / "demo" / "stems"
    place = slice(3 * RATE, 3 * RATE + round(seconds * RATE))
    return [bsseval.round_to_16_bits(soundfile.read(folder / f"{stem}.ogg")[0][place]) for stem in stems]


def blurred(true: list[Signal], seed: int) -> list[Signal]:
    """Estimates with all that separators do wrong: leakage, echoes, noise, another gain."""
    rng, mixture = np.random.default_rng(seed), np.sum(true, axis=0)
    gains = rng.uniform(0.05, 0.3, (len(true), 4))
    return [
        (1 - gain[0]) * stem
        + gain[1] * mixture
        + gain[2] * np.roll(stem, 37, 0)
        + 0.01 * gain[3] * rng.normal(size=stem.shape)
        for stem, gain in zip(true, gains, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stems", "tolerance"),
    (
        (("vocals", "drums", "other"), 1e-6),
        # Both channels of the bass are the same: museval's own rounding is larger there.
        (("bass", "drums"), 1e-4),
    ),
)
def test_every_frame_of_music_is_museval_s(stems: tuple[str, ...], tolerance: float) -> None:
    true = music(*stems, seconds=3.4)
    true[0][RATE : 2 * RATE] = 0  # a frame that museval leaves out
    factored: deque[References] = deque(maxlen=2)
    references = dict(zip(stems, true, strict=True))
    for seed in (1, 2):  # the second method finds the references prepared
        estimates = dict(zip(stems, blurred(true, seed), strict=True))
        ours, _ = bsseval.museval_frames(references, estimates, RATE, factored=factored)
    assert len(factored) == 1
    theirs, _ = bsseval.package_frames(references, estimates, RATE)
    for stem in stems:
        for name, ratios in theirs[stem].items():
            assert ratios.shape == (3,)
            assert np.isnan(ratios).tolist() == [False, True, False]
            np.testing.assert_allclose(ours[stem][name], ratios, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_dependent_references_are_supported() -> None:
    """A stem panned by a power of two: its channels are multiples of each other, and museval's matrix singular."""
    left, other = noise(1), noise(2, channels=2)
    references = {"bass": np.hstack([left, left / 2]), "drums": other}
    estimates = {
        "bass": references["bass"] + 0.1 * noise(4, channels=2),
        "drums": 0.9 * other + 0.1 * noise(3, channels=2),
    }
    ours, _ = bsseval.museval_frames(references, estimates, RATE)
    theirs, _ = bsseval.package_frames(references, estimates, RATE)
    for stem, by_name in theirs.items():
        for name, ratios in by_name.items():
            np.testing.assert_allclose(ours[stem][name], ratios, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_mixture_has_no_artefacts(tmp_path: Path) -> None:
    """Its SAR is at the limit, not the rounding errors of a program; its other ratios are museval's."""
    true = {"drums": noise(1), "bass": noise(2), "other": noise(3)}
    mixture = dict.fromkeys(true, np.sum(list(true.values()), axis=0))
    both = [frames(true, mixture, RATE)[0] for frames in (bsseval.museval_frames, bsseval.package_frames)]
    for stem in true:
        for found in both:
            assert (found[stem]["sar"] == bsseval.HIGHEST_SAR).all()
        for name in ("sdr", "isr", "sir"):
            np.testing.assert_allclose(both[0][stem][name], both[1][stem][name], rtol=0, atol=1e-6)
    write(tmp_path / "data" / "song", **true)
    write(tmp_path / "found", **mixture)
    drums = scored(tmp_path).stems["drums"]
    assert drums["museval_sar"] == bsseval.HIGHEST_SAR


@pytest.mark.slow
@pytest.mark.longest
def test_both_kinds_of_musdb_are_what_musdb_reads(tmp_path: Path) -> None:
    """stempeg's excerpt as MUSDB18 and as HQ; every frame of every stem as museval has it."""
    import shutil

    import musdb as official
    import museval
    import stempeg

    for subset in ("train", "test"):
        (tmp_path / "packed" / subset).mkdir(parents=True)
    shutil.copy(stempeg.example_stem_path(), tmp_path / "packed" / "test" / "A - B.stem.mp4")
    (track,) = official.DB(root=str(tmp_path / "packed"), subsets="test").tracks
    name, (packed,) = musdb.find_musdb(tmp_path / "packed")
    assert name == f"{EXCERPTS} test"
    hq = tmp_path / "hq" / "test" / "A - B"
    hq.mkdir(parents=True)
    unpacked = musdb.decode_stems(packed, hq)
    for stem in ("vocals", "drums", "bass", "other"):
        read, _ = soundfile.read(unpacked.files[stem])
        np.testing.assert_array_equal(read, track.targets[stem].audio)
    mixture = track.audio
    estimates = {stem: 0.5 * track.targets[stem].audio + 0.2 * mixture for stem in ("vocals", "drums")}
    estimates["accompaniment"] = mixture - estimates["vocals"]
    estimates = {stem: signal.astype(np.float32).astype(np.float64) for stem, signal in estimates.items()}
    write(tmp_path / "found" / "test" / "A - B", **estimates)
    both = []
    for root in ("packed", "hq"):
        name, songs = musdb.find_musdb(tmp_path / root)
        method = FolderMethod(tmp_path / "found", "found")
        both.append(evaluate(songs, [method], data=name, metrics=("fast",), command="c").methods[0])
    assert both[0] == both[1]
    found = evaluate(songs, [method], data=name, metrics=("museval",), command="c").methods[0]
    store = museval.eval_mus_track(track, estimates)
    for target in store.scores["targets"]:
        for metric in ("SDR", "ISR", "SIR", "SAR"):
            frames = [float(frame["metrics"][metric]) for frame in target["frames"]]
            score = found.songs[0].stems[target["name"]]
            assert score[f"museval_{metric.lower()}"] == pytest.approx(np.nanmedian(frames), abs=1e-5)
