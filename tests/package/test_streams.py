"""Stems in memory: as a stream, from several threads, over many songs, and into files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa_sep import Separator, Stems
from tfswa_sep.errors import InputError, ModelError, OutputError, UsageError

Samples = NDArray[np.float32]
Noise = Callable[..., Samples]
ROOT = Path(__file__).resolve().parents[2]


def cut(samples: Samples, *sizes: int) -> Iterator[Samples]:
    """Blocks of these sizes, over and over, until there is no more."""
    start, turn = 0, 0
    while start < samples.shape[1]:
        stop = start + sizes[turn % len(sizes)]
        yield samples[:, start:stop]
        start, turn = stop, turn + 1


@pytest.mark.parametrize("channels", (1, 2))
@pytest.mark.parametrize("rate", (44_100, 22_050, 48_000))
def test_a_stream_is_what_the_whole_would_be(
    fake_backend: Callable[..., Any], noise: Noise, rate: int, channels: int
) -> None:
    samples = noise(channels, 50_001)
    separator = Separator(fake_backend())
    whole = separator.separate(samples, rate)
    pieces = list(separator.stream(cut(samples, 700, 0, 12_345), rate, stems="vocals,accompaniment"))
    assert [piece.sample_rate for piece in pieces] == [rate] * len(pieces) and len(pieces) > 3
    joined = np.concatenate([piece["vocals"] for piece in pieces], axis=1)
    assert joined.shape == samples.shape
    np.testing.assert_allclose(joined, whole["vocals"], atol=1e-6)
    rest = np.concatenate([piece["accompaniment"] for piece in pieces], axis=1)
    np.testing.assert_allclose(joined + rest, sum(whole.values()), atol=1e-5)


def test_a_stream_gives_stems_before_it_has_ended(fake_backend: Callable[..., Any], noise: Noise) -> None:
    taken = 0

    def recording() -> Iterator[Samples]:
        nonlocal taken
        while True:  # without an end
            taken += 1000
            yield noise(2, 1000)

    first = next(piece for piece in Separator(fake_backend()).stream(recording(), 44_100) if piece.samples)
    assert first["bass"].shape == (2, first.samples) and taken < 40_000


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [np.zeros((3, 10), np.float32)],
        [np.zeros(10, np.float32)],
        [np.zeros((2, 10), np.float32), np.zeros((1, 10), np.float32)],
        [np.full((2, 10), np.nan, np.float32)],
        [np.full((2, 10), 1e30, np.float32)],
        [np.full((2, 10), 1000, np.int16)],
    ],
)
def test_invalid_blocks_are_refused(fake_backend: Callable[..., Any], blocks: list[Samples]) -> None:
    with pytest.raises(InputError):
        list(Separator(fake_backend()).stream(blocks, 44_100))


def test_integers_are_refused(fake_backend: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="got int16: divide 16-bit samples by 32768"):
        Separator(fake_backend()).separate(np.full((2, 10), 1000, np.int16), 44_100)


@pytest.mark.parametrize(
    ("stems", "message"),
    (
        ({}, "all of the same shape"),
        ({"bass": np.zeros((2, 10)), "drums": np.zeros((2, 11))}, "all of the same shape"),
        ({"../bass": np.zeros((2, 10))}, "not a valid file name"),
        ({"bass": np.full((2, 10), np.nan)}, "NaN or infinite"),
    ),
)
def test_stems_that_cannot_be_saved(
    fake_backend: Callable[..., Any], tmp_path: Path, stems: dict[str, Samples], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Separator(fake_backend()).save(Stems(stems, sample_rate=44_100), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_misspelt_option_is_refused(fake_backend: Callable[..., Any], tmp_path: Path) -> None:
    stems = Stems({"bass": np.zeros((2, 10), np.float32)}, sample_rate=44_100)
    with pytest.raises(TypeError, match="audio_formt"):
        Separator(fake_backend()).save(stems, tmp_path, audio_formt="flac")  # type: ignore[call-arg]


def test_progress_of_an_array_reaches_the_end(fake_backend: Callable[..., Any], noise: Noise) -> None:
    seen: list[tuple[float, float | None]] = []
    Separator(fake_backend()).separate(noise(2, 44_100), 44_100, on_progress=lambda *step: seen.append(step))
    assert seen == sorted(seen) and len(seen) > 3 and seen[-1] == (1.0, 1.0)


def test_saved_stems_are_those_that_were_given(
    fake_backend: Callable[..., Any], noise: Noise, tmp_path: Path
) -> None:
    separator = Separator(fake_backend())
    stems = separator.separate(noise(2, 100_000), 48_000)
    files = separator.save(stems, tmp_path / "a" / "b")
    assert files == {stem: tmp_path / "a" / "b" / f"{stem}.wav" for stem in stems}
    for stem, path in files.items():
        read, rate = soundfile.read(path, dtype="float32")
        assert rate == 48_000 and np.array_equal(read.T, stems[stem])
    mono = Stems({"bass": noise(1, 500)[0]}, sample_rate=8_000)
    (path,) = separator.save(mono, tmp_path, audio_format="flac", bit_depth="16").values()
    separator.save(mono, tmp_path, bit_depth=16)  # type: ignore[arg-type]  # as most would write it
    assert soundfile.info(tmp_path / "bass.wav").subtype == "PCM_16"
    assert soundfile.info(path).frames == 500 and soundfile.info(path).channels == 1
    with pytest.raises(OutputError):
        separator.save(mono, tmp_path, audio_format="flac", overwrite=False)
    with pytest.raises(UsageError):
        separator.save(mono, tmp_path, audio_format="flac", bit_depth="32f")


def test_a_checkpoint_is_loaded_at_once(onnx_model: Callable[..., Path], noise: Noise) -> None:
    path = onnx_model()
    separator = Separator.from_checkpoint(path, threads=1)
    assert separator.stems == ("vocals", "drums", "bass", "other")
    samples = noise(2, 10_000)
    np.testing.assert_allclose(separator.separate(samples, 44_100)["vocals"], samples / 2, atol=1e-5)
    path.write_bytes(path.read_bytes()[:100])
    for broken in (path, path.with_name("none.onnx"), path.with_suffix(".pt")):
        with pytest.raises(ModelError):
            Separator.from_checkpoint(broken)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), [("onnx", "fp32"), ("onnx", "int8"), ("torch", "fp32")])
def test_threads_get_the_same_to_the_bit(backend: str, precision: str, noise: Noise) -> None:
    separator = Separator("small", backend=backend, precision=precision, threads=1)
    songs = [noise(2, 100_000 + index) for index in range(2)]
    alone = [separator.separate(song, 44_100) for song in songs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda song: separator.separate(song, 44_100), songs))
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(one[stem], other[stem]) for stem in one)


MANY_SONGS = """
import sys, resource
from pathlib import Path
from statistics import median
import numpy as np, soundfile
from tfswa_sep import Separator

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

model, folder = sys.argv[1], Path(sys.argv[2])
separator = Separator(model, threads=1)
random = np.random.default_rng(0)
sizes = []
for number in range(100):
    rate, channels = (44_100, 48_000)[number % 2], 1 + number % 2
    song = folder / f"song.{('wav', 'flac', 'ogg')[number % 3]}"
    soundfile.write(song, random.uniform(-0.5, 0.5, (rate // 2, channels)), rate)
    separator.separate_file(song, out=folder)
    separator.separate(random.uniform(-0.5, 0.5, (2, rate // 2)), rate)
    sizes.append(resident())
print(median(sizes[20:60]), median(sizes[60:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's count of resident pages")
def test_memory_is_steady_over_100_songs(onnx_model: Callable[..., Path], tmp_path: Path) -> None:
    """A real ONNX session, files and arrays by turns, of several formats, rates and channels."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_SONGS, str(onnx_model()), str(tmp_path)],
        cwd=ROOT,
        env={
            **os.environ,
            "MALLOC_ARENA_MAX": "1",
        },  # a leak is looked for, not what each thread's heap keeps
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    early, late = map(float, done.stdout.split())
    assert late < early + 4e6  # a leak of 100 KB per song
