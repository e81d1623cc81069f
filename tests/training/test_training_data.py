"""Songs for training: MUSDB18 in both forms, plain folders, the cache, chunks, targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")

from torch import Tensor

from tfswa_sep.errors import InputError, UsageError
from training.configuration import load_config
from training.data import cache, folder, loader, musdb
from training.data.chunks import SongChunks
from training.data.loader import TrainingData, load_batches, open_data
from training.data.tracks import Track, decode

RATE = 44_100
STEMS = ("drums", "bass", "other", "vocals")  # in MUSDB18's own order
TRAINS, VALIDATES = "A Classic Education - NightOwl", "Actions - One Minute Smile"  # by the official split


def tone(frequency: float, *, seconds: float = 1.0, level: float = 0.1) -> NDArray[np.float32]:
    """(n, 2)"""
    wave = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)
    return np.stack([wave, wave], axis=1).astype(np.float32)


def song_waves() -> dict[str, NDArray[np.float32]]:
    return {stem: tone(200 * 2**i) for i, stem in enumerate(STEMS)}


def write_musdb(root: Path, *, is_wav: bool) -> Path:
    """The layout of the real one: two songs in train, one of them for validation, and one in test."""
    for subset, name in (("train", TRAINS), ("train", VALIDATES), ("test", "Zeno - Signs")):
        waves = song_waves()
        mixture = np.sum(list(waves.values()), axis=0)
        if is_wav:
            for stem, wave in {"mixture": mixture, **waves}.items():
                path = root / subset / name / f"{stem}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, RATE, subtype="PCM_16")
        else:
            import stempeg

            (root / subset).mkdir(parents=True, exist_ok=True)
            streams = np.stack([mixture, *waves.values()])
            stempeg.write_stems(str(root / subset / f"{name}.stem.mp4"), streams, sample_rate=RATE)
    return root


def pitch(samples: NDArray[np.int16]) -> float:
    """Hz of the strongest partial of (n, 2)."""
    spectrum = np.abs(np.fft.rfft(samples[:, 0].astype(float)))
    return float(spectrum.argmax() * RATE / len(samples))


@pytest.mark.parametrize(
    "is_wav", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["wav", "stem.mp4"]
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
def test_musdb_is_decoded(tmp_path: Path, is_wav: bool) -> None:
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("musdb wants ffmpeg")
    pytest.importorskip("musdb")
    root = write_musdb(tmp_path, is_wav=is_wav)
    for split, name in (("train", TRAINS), ("valid", VALIDATES), ("test", "Zeno - Signs")):
        tracks, stems = musdb.find_tracks(root, split, is_wav=is_wav)  # type: ignore[arg-type]
        assert [track.name for track in tracks] == [name] and set(stems) == set(STEMS)
    samples = decode(tracks[0], STEMS)
    assert samples.shape[1:] == (4, 2) and samples.dtype == np.int16
    for i in range(4):
        assert pitch(samples[:, i]) == pytest.approx(200 * 2**i, abs=3)
        assert np.abs(samples[RATE // 4 : RATE // 2, i]).max() == pytest.approx(3277, rel=0.05)  # AAC
    with pytest.raises(InputError, match="has no folder train"):
        musdb.find_tracks(tmp_path / "train", "train", is_wav=is_wav)


def write_song(path: Path, **waves: NDArray[np.float32]) -> None:
    path.mkdir(parents=True)
    for stem, wave in waves.items():
        soundfile.write(path / f"{stem}.wav", wave, RATE, subtype="FLOAT")


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Two songs: one has a guitar of two files, the other no vocals."""
    root = tmp_path / "songs"
    write_song(root / "a", vocals=tone(300), drums=tone(900), mixture=tone(1))
    write_song(root / "a/guitar", left=tone(500), right=tone(500, seconds=0.5))
    write_song(root / "b", drums=tone(900, seconds=2.0))
    (root / "notes").mkdir()
    return root


def test_a_folder_may_have_any_stems(songs: Path) -> None:
    tracks, stems = folder.find_tracks(songs)
    assert [track.name for track in tracks] == ["a", "b"] and stems == ("drums", "guitar", "vocals")
    samples = decode(tracks[0], stems)
    assert samples.shape == (RATE, 3, 2)
    assert np.abs(samples[: RATE // 2, 1]).max() == pytest.approx(6553, abs=2)  # both files
    assert np.abs(samples[RATE // 2 :, 1]).max() == pytest.approx(3277, abs=2)  # the longer one
    assert not decode(tracks[1], stems)[:, 1:].any()
    soundfile.write(songs / "b/drums.flac", tone(1), RATE)
    with pytest.raises(InputError, match=r"drums\.wav and drums\.flac are the same stem"):
        folder.find_tracks(songs)
    with pytest.raises(InputError, match="no songs in"):
        folder.find_tracks(songs / "notes")


def test_stems_are_known_in_capitals_too(tmp_path: Path) -> None:
    write_song(tmp_path / "a", Vocals=tone(300), DRUMS=tone(900), Mixture=tone(1))
    write_song(tmp_path / "b", vocals=tone(300))
    write_song(tmp_path / "b/Drums", left=tone(900))
    assert folder.find_tracks(tmp_path)[1] == ("drums", "vocals")
    soundfile.write(tmp_path / "b/Vocals.flac", tone(1), RATE)
    with pytest.raises(InputError, match="are the same stem"):
        folder.find_tracks(tmp_path)


def test_a_track_above_full_scale_keeps_its_balance(tmp_path: Path) -> None:
    write_song(tmp_path / "loud", vocals=tone(300, level=2.0), drums=tone(900, level=0.5))
    (track,), stems = folder.find_tracks(tmp_path)
    peaks = np.abs(decode(track, stems)).max(axis=(0, 2))
    assert peaks[1] == 32_767 and peaks[0] == pytest.approx(32_767 / 4, rel=1e-3)


@pytest.mark.slow
def test_the_cache_is_built_once_and_repaired(songs: Path, tmp_path: Path) -> None:
    tracks, stems = folder.find_tracks(songs)
    cache_folder = tmp_path / "cache"
    built = cache.build_cache(tracks, stems, cache_folder, workers=1)
    assert [track.name for track in built] == ["a", "b"]
    assert isinstance(built[0].samples, np.memmap)
    np.testing.assert_array_equal(built[0].samples, decode(tracks[0], stems))
    assert built[1].active.tolist() == [[True, False, False]] * 4

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in cache_folder.glob("*.npy")}

    first = times()
    cache.build_cache(tracks, stems, cache_folder, workers=1)
    assert times() == first  # nothing was rebuilt
    content = bytearray((cache_folder / "a.npy").read_bytes())
    content[-1] ^= 1  # one bit, the same size
    (cache_folder / "a.npy").write_bytes(content)
    soundfile.write(songs / "b/drums.wav", tone(100, seconds=1.5), RATE, subtype="FLOAT")
    built = cache.build_cache(tracks, stems, cache_folder, workers=2)
    np.testing.assert_array_equal(built[0].samples, decode(tracks[0], stems))
    assert len(built[1].samples) == 1.5 * RATE
    assert sorted(path.suffix for path in cache_folder.iterdir()) == [".json", ".json", ".npy", ".npy"]


def test_songs_are_decoded_on_the_cores_that_the_process_may_use(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job scheduler often gives a process only some of a machine's cores."""
    monkeypatch.setattr(cache, "count_cores", lambda: 1)
    monkeypatch.setattr(cache, "ProcessPoolExecutor", None)  # fails if it is called
    tracks, stems = folder.find_tracks(songs)
    assert len(cache.build_cache(tracks, stems, tmp_path / "cache")) == 2


def test_a_file_that_cannot_be_read_is_named(songs: Path, tmp_path: Path) -> None:
    (songs / "b/drums.wav").write_text("no audio")
    tracks, stems = folder.find_tracks(songs)
    with pytest.raises(InputError, match=r"b/drums\.wav"):
        cache.build_cache(tracks, stems, tmp_path / "cache", workers=1)


def cached(tmp_path: Path, samples: NDArray[np.int16]) -> cache.CachedTrack:
    np.save(tmp_path / "x.npy", samples)
    stems = tuple("abcd"[: samples.shape[1]])
    return cache.CachedTrack("x", stems, tmp_path / "x.npy", cache._activity(samples), (True,) * len(stems))


def test_a_stem_without_a_file_is_unknown_and_a_silent_file_is_silence(tmp_path: Path) -> None:
    for song, names in (("a", ("vocals", "drums", "guitar")), ("b", ("vocals", "drums"))):
        (tmp_path / song).mkdir()
        for stem in names:
            wave = np.zeros((RATE, 2)) if stem == "drums" else tone(300)
            soundfile.write(tmp_path / song / f"{stem}.wav", wave, RATE)
    tracks, stems = folder.find_tracks(tmp_path)
    cached = cache.build_cache(tracks, stems, tmp_path / "cache", workers=1)
    assert stems == ("drums", "guitar", "vocals")
    for track, known in zip(cached, ([1, 1, 1], [1, 0, 1]), strict=True):
        chunks = SongChunks([track], seconds=0.2)
        assert chunks.example(np.random.default_rng(0))[2].tolist() == known


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
@pytest.mark.slow
def test_a_final_model_trains_on_all_songs_of_musdb(songs: Path, tmp_path: Path) -> None:
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("musdb wants ffmpeg")
    pytest.importorskip("musdb")
    root = write_musdb(tmp_path / "musdb", is_wav=True)
    options = [
        "data=musdb18hq",
        f"data.root={root}",
        f"data.cache={tmp_path / 'cache'}",
        "data.build_workers=1",
    ]

    def opened(*more: str) -> tuple[set[str], set[str]]:
        data = open_data(load_config([*options, *more]).data, STEMS, seed=0)
        drawn: Any = data.draw(0.2)
        return {track.name for track, _ in drawn._tracks}, set(data.valid)

    assert opened() == ({TRAINS}, {VALIDATES})
    assert opened("data.split=all") == ({TRAINS, VALIDATES}, set())
    mine = tmp_path / "mine"
    (mine / "song").mkdir(parents=True)
    soundfile.write(mine / "song/vocals.wav", tone(300), RATE)
    assert opened("data.split=all", f"data.valid={mine}") == ({TRAINS, VALIDATES}, {"song"})
    with pytest.raises(InputError, match=r"unknown data\.split 'none': choose official or all"):
        opened("data.split=none")


def test_targets_that_are_not_valid_stem_names_are_refused(tmp_path: Path) -> None:
    for stem in ("lead vocals", "drums"):
        (tmp_path / "songs/a").mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / f"songs/a/{stem}.wav", tone(300), RATE)
    config = load_config(
        ["data=folder", f"data.root={tmp_path / 'songs'}", f"data.cache={tmp_path / 'cache'}"]
    ).data
    with pytest.raises(UsageError, match="'lead vocals' is not a valid stem name"):
        open_data(config, ("lead vocals",), seed=0)
    assert open_data(config, ("drums",), seed=0).targets == ("drums",)


def test_chunks_contain_an_active_stem(tmp_path: Path) -> None:
    """Only one of ten seconds is active: chunks cut anywhere would seldom contain it."""
    samples = np.zeros((10 * RATE, 2, 2), np.int16)
    samples[7 * RATE : 8 * RATE, 1] = 3000
    chunks = SongChunks([cached(tmp_path, samples)], seconds=1.0, anywhere=0.0)
    examples = [chunks.example(np.random.default_rng(i)) for i in range(40)]
    assert all(stems[1].any() and not stems[0].any() for _, stems, _ in examples)
    for mixture, stems, known in examples:
        np.testing.assert_array_equal(mixture, stems.sum(axis=0))
        assert mixture.shape == (2, RATE) and known.tolist() == [1, 1]
    onsets = [int(stems[1, 0].argmax()) for _, stems, _ in examples]
    assert len(set(onsets)) > 10  # not always at the same position
    anywhere = SongChunks([cached(tmp_path, samples)], seconds=1.0, anywhere=1.0)
    silent = [not anywhere.example(np.random.default_rng(i))[1].any() for i in range(40)]
    assert 20 < sum(silent) < 40
    with pytest.raises(ValueError, match="x is shorter than"):
        SongChunks([cached(tmp_path, samples)], seconds=11.0)


# torch warns where there are fewer CPUs than workers
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_batch_is_the_same_for_any_workers_and_processes(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, (3 * RATE, 2, 2)).astype(np.int16)
    chunks = SongChunks([cached(tmp_path, samples)], seconds=0.1, seed=5)

    def batches(first: int, count: int, workers: int, start: int = 0) -> list[Tensor]:
        steps = range(start, 3)
        return [b[0] for b in load_batches(chunks, steps, count=count, first=first, workers=workers)]

    whole = batches(0, 4, 0)
    halves = [torch.cat(pair) for pair in zip(batches(0, 2, 2), batches(2, 2, 0), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    assert torch.equal(whole[2], batches(0, 4, 1, start=2)[0])
    assert not torch.equal(whole[0], whole[1])


def opened(songs: Path, tmp_path: Path, *overrides: str) -> TrainingData:
    fixed = ["data=folder", f"data.root={songs}", f"data.cache={tmp_path / 'cache'}", "data.build_workers=1"]
    return open_data(load_config([*fixed, *overrides]).data, ("drums", "vocals"), seed=0)


def test_the_open_corpus_is_mixed_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[dict[str, object]] = []
    monkeypatch.setattr(loader, "Mixer", lambda *_, **options: created.append(options))
    open_data(load_config(["data.pools=x"]).data, STEMS, seed=3, device="cuda:1").draw(0.3)
    assert created == [{"seed": 3, "device": "cuda:1"}]


def test_the_open_corpus_is_not_validated_on_stems_that_it_lacks(songs: Path) -> None:
    config = load_config(["data.pools=x", f"data.valid={songs}"]).data
    with pytest.raises(
        InputError, match=r"songs has a stem 'guitar': the open corpus has only vocals, drums"
    ):
        open_data(config, STEMS, seed=0)
    shutil.rmtree(songs / "a/guitar")
    valid = open_data(config, STEMS, seed=0).valid
    assert {name: read().shape for name, read in valid.items()} == {"a": (4, 2, RATE), "b": (4, 2, 2 * RATE)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
def test_the_open_corpus_is_validated_on_stem_mp4_files(tmp_path: Path) -> None:
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("stempeg wants ffmpeg")
    pytest.importorskip("stempeg")
    folder = write_musdb(tmp_path, is_wav=False) / "train"
    overrides = ["data.pools=x", f"data.valid={folder}", f"data.valid_exclude='{TRAINS[:4]}*'"]
    valid = open_data(load_config(overrides).data, STEMS, seed=0).valid
    assert list(valid) == [VALIDATES]
    stems = valid[VALIDATES]()
    assert stems.shape[:2] == (4, 2)
    pitches = [pitch((wave.numpy().T * 32_767).astype(np.int16)) for wave in stems]
    frequencies = {stem: 200 * 2**i for i, stem in enumerate(song_waves())}
    assert pitches == pytest.approx(
        [frequencies[stem] for stem in ("vocals", "drums", "bass", "other")], abs=2
    )


@pytest.mark.slow
def test_targets_are_any_sums(songs: Path, tmp_path: Path) -> None:
    data = opened(songs, tmp_path, "data.targets=[vocals, accompaniment]", f"data.valid={songs}")
    assert data.targets == ("vocals", "accompaniment") and data.adds_up
    assert data.matrix.tolist() == [[0, 0, 1], [1, 1, 0]]
    assert {name: read().shape for name, read in data.valid.items()} == {
        "a": (3, 2, RATE),
        "b": (3, 2, 2 * RATE),
    }
    data = opened(songs, tmp_path, "data.targets=[vocals+guitar]")
    assert data.targets == ("vocals+guitar",) and not data.adds_up and data.matrix.tolist() == [[0, 1, 1]]
    assert opened(songs, tmp_path).targets == ("drums", "vocals")
    with pytest.raises(UsageError, match="unknown stem 'piano'"):
        opened(songs, tmp_path, "data.targets=[piano]")
    with pytest.raises(UsageError, match=r"unknown setting 'data\.target': did you mean 'data\.targets'"):
        opened(songs, tmp_path, "data.target=[piano]")
    with pytest.raises(InputError, match="choose open, musdb18, musdb18hq or folder"):
        opened(songs, tmp_path, "data.kind=musdb")


def test_the_cache_describes_each_song(songs: Path, tmp_path: Path) -> None:
    (track,) = cache.build_cache(
        [Track("b", {"drums": (songs / "b/drums.wav",)})], ("drums",), tmp_path, workers=1
    )
    entry = json.loads((tmp_path / "b.json").read_text())
    assert entry["stems"] == ["drums"] and len(entry["sha256"]) == 64 and entry["active"] == ["1111"]
    assert track.stems == ("drums",)
