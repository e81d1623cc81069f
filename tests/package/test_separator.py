from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa_sep.errors import InputError, ModelError, OutputError, UsageError
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.separator import Separator, separate

Samples = NDArray[np.float32]
Noise = Callable[..., Samples]
Song = Callable[..., Path]
Fake = Callable[..., Any]
SHARES = {
    "vocals": 0.5,
    "drums": 0.25,
    "bass": 0.125,
    "other": 0.125,
    "accompaniment": 0.5,
    "drums+bass": 0.375,
}


def read(path: Path) -> Samples:
    samples: Samples = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    return samples


@pytest.mark.parametrize("length", (1, 6144, 8191, 8192, 8193, 60_001))
def test_every_stem_is_exact_at_every_length(
    fake_backend: Fake, noise: Noise, song: Song, tmp_path: Path, length: int
) -> None:
    samples = noise(2, length, peak=1.2)  # louder than full scale, which floats hold
    result = separate(song("a song.wav", samples), model=fake_backend(edges=99.0), out=tmp_path / "out")
    assert sorted(result.files) == ["bass", "drums", "other", "vocals"]
    for stem, path in result.files.items():
        assert path == tmp_path / "out" / "a song" / f"{stem}.wav"
        np.testing.assert_allclose(read(path), samples * SHARES[stem], atol=1e-6)
    assert result.seconds == length / 44_100 and result.sample_rate == 44_100
    assert (result.backend, result.device, result.warnings, result.gain) == ("fake", "cpu", (), 1.0)


@pytest.mark.parametrize("channels", (1, 2))
@pytest.mark.parametrize("rate", (8_000, 48_000, 96_000))
def test_rate_channels_and_length_are_the_songs(
    fake_backend: Fake, song: Song, tmp_path: Path, rate: int, channels: int
) -> None:
    frames = rate // 2 + 7
    tone = np.sin(np.arange(frames) / rate * 2 * np.pi * 441).astype(np.float32) * 0.4
    samples = np.stack([tone, -0.5 * tone][:channels])
    result = separate(song("a.flac", samples, rate, "PCM_24"), model=fake_backend(), out=tmp_path)
    for stem, path in result.files.items():
        got = read(path)
        assert soundfile.info(path).samplerate == rate and got.shape == (channels, frames)
        inside = slice(rate // 50, -rate // 50)
        np.testing.assert_allclose(got[:, inside], samples[:, inside] * SHARES[stem], atol=1e-4)


def test_stems_are_chosen_and_summed(fake_backend: Fake, noise: Noise, song: Song, tmp_path: Path) -> None:
    path = song("a.wav", samples := noise(2, 20_000))
    backend = fake_backend()
    result = separate(path, model=backend, out=tmp_path, stems="accompaniment,drums+bass,vocals")
    assert list(result.files) == ["accompaniment", "drums+bass", "vocals"]
    assert sorted(os.listdir(tmp_path / "a")) == ["accompaniment.wav", "drums+bass.wav", "vocals.wav"]
    for stem, file in result.files.items():
        np.testing.assert_allclose(read(file), samples * SHARES[stem], atol=1e-6)


def test_real_network_sums_to_the_mixture(
    onnx_model: Callable[..., Path], noise: Noise, song: Song, tmp_path: Path
) -> None:
    path = song("a.wav", samples := noise(2, 30_000))
    result = separate(path, model=onnx_model(), out=tmp_path, stems=["vocals", "accompaniment"])
    assert (result.backend, result.device, result.model) == ("onnx", "cpu", "shares")
    total = read(result.files["vocals"]) + read(result.files["accompaniment"])
    np.testing.assert_allclose(total, samples, atol=1e-5)


def test_clipped_samples_are_counted_and_reported(fake_backend: Fake, song: Song, tmp_path: Path) -> None:
    samples = np.zeros((2, 20_000), np.float32)
    samples[:, 100:103] = 3.0
    result = separate(song("a.wav", samples), model=fake_backend(), out=tmp_path, bit_depth="16")
    assert result.clipped == {"vocals": 6, "drums": 0, "bass": 0, "other": 0}
    assert len(result.warnings) == 1 and "vocals 6" in result.warnings[0]
    result = separate(
        song("a.wav", samples), model=fake_backend(), out=tmp_path, audio_format="flac", rescale=True
    )
    assert not any(result.clipped.values())
    assert result.gain == pytest.approx(1 / 1.5, abs=1e-5)
    assert read(result.files["drums"])[0, 101] == pytest.approx(0.5, abs=1e-5)  # the same gain for all
    assert "3.52 dB" in result.warnings[0]


def test_silence_gives_silent_stems_and_a_warning(fake_backend: Fake, song: Song, tmp_path: Path) -> None:
    backend = fake_backend(edges=0.3)
    result = separate(song("a.wav", np.zeros((2, 30_000), np.float32)), model=backend, out=tmp_path)
    assert all(not read(path).any() for path in result.files.values())
    assert backend.calls == 0
    assert len(result.warnings) == 1 and "silent" in result.warnings[0]


def test_rate_that_the_container_cannot_hold_is_reported(
    fake_backend: Fake, song: Song, tmp_path: Path
) -> None:
    path = song("a.wav", 65_537, 65_537)
    result = separate(path, model=fake_backend(), out=tmp_path, audio_format="flac", stems="bass")
    assert result.sample_rate == soundfile.info(result.files["bass"]).samplerate == 65_540
    assert soundfile.info(result.files["bass"]).frames == 65_540
    assert result.seconds == 1.0 and "65540 Hz" in result.warnings[0]


def test_progress_reaches_the_end(fake_backend: Fake, song: Song, tmp_path: Path) -> None:
    seen: list[tuple[float, float | None]] = []
    separate(
        song("a.wav", 44_100), model=fake_backend(), out=tmp_path, on_progress=lambda *step: seen.append(step)
    )
    done = [step[0] for step in seen]
    assert len(seen) > 5 and done == sorted(done) and seen[-1] == (1.0, 1.0)


@pytest.mark.parametrize("failure", (RuntimeError, KeyboardInterrupt, MemoryError))
def test_nothing_is_left_behind_when_the_network_fails(
    fake_backend: Fake, song: Song, tmp_path: Path, failure: type[BaseException]
) -> None:
    backend = fake_backend(fail_at=3, failure=failure)
    with pytest.raises(failure):
        separate(song("a.wav", 60_000), model=backend, out=tmp_path / "out" / "deep")
    assert backend.calls in (3, 4)  # the next segment was on its way
    assert os.listdir(tmp_path) == ["songs"]


def test_nothing_is_left_behind_when_the_song_is_broken_at_its_end(
    fake_backend: Fake, noise: Noise, song: Song, tmp_path: Path
) -> None:
    samples = noise(2, 200_000)
    samples[0, -5] = np.nan
    with pytest.raises(InputError, match="sample 199995"):
        separate(song("a.wav", samples), model=fake_backend(), out=tmp_path / "out")
    assert os.listdir(tmp_path) == ["songs"]


def test_unwritable_folder_is_reported_before_the_network_runs(
    fake_backend: Fake, song: Song, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    backend = fake_backend()
    with pytest.raises(OutputError, match="cannot write"):
        separate(song("a.wav", 20_000), model=backend, out=tmp_path / "file")
    assert backend.calls == 0


def test_wrong_use_writes_nothing(fake_backend: Fake, song: Song, tmp_path: Path) -> None:
    path = song("a.wav", 20_000)
    wrong: tuple[dict[str, Any], ...] = (
        {"stems": "karaoke"},
        {"name": "../{stem}{ext}"},
        {"audio_format": "aiff"},
        {"audio_format": "flac", "bit_depth": "32f"},
    )
    for options in wrong:
        with pytest.raises(UsageError):
            separate(path, model=fake_backend(), out=tmp_path / "out", **options)
    with pytest.raises(InputError):
        separate(tmp_path / "missing.wav", model=fake_backend(), out=tmp_path / "out")
    assert os.listdir(tmp_path) == ["songs"]


@pytest.mark.parametrize(
    ("name", "device", "precision", "advice"),
    [
        ("onnx", "cpu", "fp32", "choose another model with --model"),
        ("onnx", "cpu", "int8", "try --precision fp32$"),
        ("onnx", "cuda:0", "fp32", "try --device cpu$"),
        ("torch", "cuda:0", "bf16", "try --device cpu or --precision fp32 or --backend onnx"),
    ],
)
def test_numbers_that_are_not_finite_are_not_written(
    fake_backend: Fake, song: Song, tmp_path: Path, name: str, device: str, precision: str, advice: str
) -> None:
    shares = (np.nan, 0.5, 0.25, 0.25)
    backend = fake_backend(shares=shares, name=name, device=device, precision=precision)
    with pytest.raises(ModelError, match=f"NaN or infinite values: {advice}"):
        separate(song("a.wav", 20_000), model=backend, out=tmp_path / "out")
    assert os.listdir(tmp_path) == ["songs"]


@pytest.mark.parametrize("shape", ((2, 30_000), (1, 30_000), (30_000,), (2, 1)))
@pytest.mark.parametrize("rate", (44_100, 48_000))
def test_arrays_keep_their_shape(fake_backend: Fake, shape: tuple[int, ...], rate: int) -> None:
    samples = np.broadcast_to(np.sin(np.arange(shape[-1]) / 30), shape)  # float64, as NumPy makes it
    stems = Separator(fake_backend()).separate(samples, rate, stems="drums,accompaniment")
    assert list(stems) == ["drums", "accompaniment"]
    inside = slice(500, -500) if shape[-1] > 1 else slice(0, 0)
    for stem, got in stems.items():
        assert got.shape == shape and got.dtype == np.float32
        np.testing.assert_allclose(got[..., inside], samples[..., inside] * SHARES[stem], atol=1e-3)


@pytest.mark.parametrize(
    ("audio", "rate"),
    (
        (np.zeros((3, 100)), 44_100),
        (np.zeros((2, 0)), 44_100),
        (np.zeros((1, 2, 100)), 44_100),
        (np.full((2, 100), np.nan), 44_100),
        (np.zeros((2, 100)), 0),
        (np.zeros((2, 100), complex), 44_100),
        (np.array(["a"]), 44_100),
    ),
)
def test_wrong_arrays_are_refused(fake_backend: Fake, audio: NDArray[np.float64], rate: int) -> None:
    with pytest.raises(InputError):
        Separator(fake_backend()).separate(audio, rate)


def test_the_usual_slips_with_arrays_are_explained(fake_backend: Fake, tmp_path: Path) -> None:
    separator = Separator(fake_backend())
    with pytest.raises(InputError, match=r"got \(100, 2\): transpose it"):  # as soundfile reads it
        separator.separate(np.zeros((100, 2)), 44_100)
    with pytest.raises(UsageError, match=r"pass Stems\(stems, sample_rate=...\)"):
        separator.save({"vocals": np.zeros((2, 100), np.float32)}, tmp_path)  # type: ignore[arg-type]


def test_one_separator_serves_threads_and_batches(
    onnx_model: Callable[..., Path], noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    original = OnnxBackend.__init__

    def count(self: OnnxBackend, *arguments: Any, **options: Any) -> None:
        loaded.append(self)
        original(self, *arguments, **options)

    monkeypatch.setattr(OnnxBackend, "__init__", count)
    separator = Separator(onnx_model(), threads=1, batch_size=3)
    songs = [noise(2, 30_000 + index) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda samples: separator.separate(samples, 44_100), songs))
    for samples, stems in zip(songs, results, strict=True):
        np.testing.assert_allclose(stems["vocals"], samples * 0.5, atol=1e-5)
    assert len(loaded) == 1


def test_a_recording_under_way_does_not_wait_for_a_batch(fake_backend: Fake, noise: Noise) -> None:
    backend = fake_backend(batch_size=16)
    came = 0

    def record() -> Iterator[Samples]:
        nonlocal came
        while True:
            came += 1
            yield noise(2, 8192)

    next(piece for piece in Separator(backend).stream(record(), 44_100) if piece.samples)
    assert came <= 4
    backend.calls = 0
    Separator(backend).separate(noise(2, 10 * 8192), 44_100)
    assert backend.calls == 1
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        Separator(backend, batch_size=0)


def test_a_batch_is_all_that_is_computed_at_once(
    fake_backend: Fake, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four workers of four segments each would be sixteen."""
    backend, threads, all_there = fake_backend(workers=4), set[int](), threading.Event()
    compute = type(backend).__call__

    def watched(self: Any, segment: Samples, **words: Any) -> Any:
        threads.add(threading.get_ident())
        if len(threads) == workers:
            all_there.set()
        all_there.wait(60)
        all_there.set()
        time.sleep(0.01)  # so that another worker would come
        return compute(self, segment, **words)

    monkeypatch.setattr(type(backend), "__call__", watched)
    for batch_size, workers in ((None, 4), (2, 2), (4, 1)):
        threads.clear()
        all_there.clear()
        Separator(backend, batch_size=batch_size).separate(noise(2, 60 * 8192), 44_100)
        assert len(threads) == workers


def shares_of(backend: Any, samples: Samples, rate: int = 44_100, **choices: Any) -> Samples:
    """What Separator makes of `samples`, over the fake's share of the vocals."""
    vocals = Separator(backend, **choices).separate(samples, rate)["vocals"]
    return np.asarray(vocals / SHARES["vocals"], np.float32)


@pytest.mark.parametrize("samples", (1, 3000, 8192, 60_001))
@pytest.mark.parametrize("shifts", (2, 3))
def test_shifted_passes_are_aligned_to_the_sample(
    fake_backend: Fake, noise: Noise, samples: int, shifts: int
) -> None:
    song = noise(2, samples)
    for workers in (1, 3):
        found = shares_of(fake_backend(workers=workers), song, shifts=shifts)
        np.testing.assert_allclose(found, song, atol=1e-6)
    assert shares_of(fake_backend(), song[0], 48_000, shifts=shifts).shape == song[0].shape


def test_shifts_are_the_mean_of_passes_at_other_offsets(fake_backend: Fake, noise: Noise) -> None:
    """A network that is wrong in a different place of each segment is less wrong in the mean."""

    class Uneven(fake_backend):  # type: ignore[misc, valid-type]
        def __call__(self, segments: Samples, **words: Any) -> Samples:
            wave = np.sin(np.arange(segments.shape[-1]) * 12 * np.pi / segments.shape[-1])
            return np.asarray(super().__call__(segments, **words) * (1 + wave), np.float32)

    song = noise(2, 60_000)
    errors = []
    for shifts in (1, 4):
        found = shares_of(Uneven(), song, shifts=shifts)
        assert np.array_equal(
            found, shares_of(Uneven(), song, shifts=shifts)
        )  # the offsets are always the same
        errors.append(float(np.square(found - song).mean()))
    assert errors[1] < errors[0] / 2


def test_shifts_need_no_more_of_a_recording_than_a_segment(
    fake_backend: Fake, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read side by side, so that memory does not grow, and compute no more at once than one pass does."""
    backend, came, at_once, most = fake_backend(workers=2), 0, 0, 0
    compute, lock = type(backend).__call__, threading.Lock()

    def watched(self: Any, segment: Samples, **words: Any) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.002)
        found = compute(self, segment, **words)
        with lock:
            at_once -= 1
        return found

    monkeypatch.setattr(type(backend), "__call__", watched)

    def record() -> Iterator[Samples]:
        nonlocal came
        for _ in range(60):
            came += 1
            yield noise(2, 4096)

    given = 0
    for stems in Separator(backend, shifts=3).stream(record(), 44_100):
        given += stems.samples
        assert came * 4096 - given <= 6 * 8192
    assert given == 60 * 4096 and most == 2


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np, soundfile
sys.path.insert(0, sys.argv[3])
from fakes import FakeBackend
from tfswa_sep.separator import separate

folder, minutes = sys.argv[1], int(sys.argv[2])
minute = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * 2000).astype(np.float32)
with soundfile.SoundFile(f"{folder}/song.wav", "w", 2000, 1, subtype="PCM_16") as file:
    for _ in range(minutes):
        file.write(minute)
backend = FakeBackend(sample_rate=2500, segment_samples=65536, margin_samples=4096)
result = separate(
    f"{folder}/song.wav", model=backend, out=folder, stems="vocals,bass", bit_depth="16", rescale=True
)
assert all(soundfile.info(path).frames == minutes * 60 * 2000 for path in result.files.values())
# Not ru_maxrss: that starts from the parent's peak.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_song(tmp_path: Path) -> None:
    """60 minutes peak within 15 % of 6 minutes; held whole, one channel of 60 minutes would take 29 MB."""
    peaks = []
    for minutes in (6, 60):
        (folder := tmp_path / str(minutes)).mkdir()
        arguments = [sys.executable, "-c", MEMORY, str(folder), str(minutes), str(Path(__file__).parents[1])]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    print(f"peak memory: 6 minutes {peaks[0] / 1024:.0f} MiB, 60 minutes {peaks[1] / 1024:.0f} MiB")
    assert peaks[1] < peaks[0] * 1.15
