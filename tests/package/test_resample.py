"""Songs at other rates than the model's: length, edges, and what the model cannot hear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa_sep import Separator, separate
from tfswa_sep.audio.resample import extend, margins, resample, trim

Samples = NDArray[np.float32]
Song = Callable[..., Path]


def tones(frames: int, rate: int, *pitches: float) -> Samples:
    """(2, n) that begins and ends at full level."""
    at = np.arange(frames) / rate
    parts = [np.cos(2 * np.pi * pitch * at + index) for index, pitch in enumerate(pitches)]
    mono = 0.9 / len(parts) * np.sum(parts, axis=0)
    return np.array([mono, -0.5 * mono], np.float32)


def blocks(samples: Samples, size: int = 1000) -> list[Samples]:
    return [samples[:, start : start + size] for start in range(0, samples.shape[1], size)]


@pytest.mark.parametrize("rate", (8_000, 44_101, 48_000, 192_000))
@pytest.mark.parametrize("frames", (1, 5, 1000, 13_230))
def test_the_length_is_exact(rate: int, frames: int) -> None:
    samples = tones(frames, 44_100, 351)
    got = np.concatenate(list(resample(blocks(samples), 44_100, rate)), axis=1)
    assert got.shape == (2, max(1, round(frames * rate / 44_100)))
    assert np.isfinite(got).all() and np.abs(got).max() < 1
    if frames > 1000:  # the tone continues up to both ends: neither shifted nor stretched
        np.testing.assert_allclose(got, tones(got.shape[1], rate, 351), atol=1e-4)


@pytest.mark.parametrize("size", (1, 777, 5000))
def test_what_is_added_is_cut_off_again(size: int) -> None:
    samples = tones(3000, 44_100, 440, 1234)
    longer = list(extend(blocks(samples, size), 200))
    joined = np.concatenate(longer, axis=1)
    assert joined.shape == (2, 3400)
    np.testing.assert_allclose(joined, tones_before(3400, 200), atol=0.03)
    np.testing.assert_array_equal(np.concatenate(list(trim(longer, 200, lambda: 3000)), axis=1), samples)


def tones_before(frames: int, earlier: int) -> Samples:
    at = (np.arange(frames) - earlier) / 44_100
    mono = 0.45 * (np.cos(2 * np.pi * 440 * at) + np.cos(2 * np.pi * 1234 * at + 1))
    return np.array([mono, -0.5 * mono], np.float32)


def test_margins_are_whole_at_all_rates() -> None:
    assert margins(44_100, 44_100) == (0, 0)
    for rates in ((44_100, 48_000), (96_000, 44_100, 48_000), (8_000, 44_100), (44_101, 44_100)):
        found = margins(*rates)
        assert len({margin * rates[0] for margin in found}) >= 1 and min(found) >= 128
        assert all(margin * rates[0] == found[0] * rate for margin, rate in zip(found, rates, strict=True))


@pytest.mark.parametrize("rate", (22_050, 32_000, 48_000, 96_000))
def test_each_stem_is_right_at_both_edges(fake_backend: Any, song: Song, tmp_path: Path, rate: int) -> None:
    samples = tones(rate, rate, 300, 1000, 4321, 7000)
    result = separate(song("a.wav", samples, rate), model=fake_backend(), out=tmp_path, bit_depth="32f")
    for stem, share in (("vocals", 0.5), ("drums", 0.25), ("other", 0.125)):
        got = soundfile.read(result.files[stem], dtype="float32")[0].T
        np.testing.assert_allclose(got, share * samples, atol=1e-4)


@pytest.mark.parametrize("stems", (None, "vocals,accompaniment"))
@pytest.mark.parametrize(("rate", "channels"), ((22_050, 1), (48_000, 2), (96_000, 2)))
def test_an_array_gives_what_a_file_gives(
    fake_backend: Any, song: Song, tmp_path: Path, rate: int, channels: int, stems: str | None
) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (channels, rate)).astype(np.float32)
    path = song("a.wav", noise, rate)
    result = separate(path, model=fake_backend(), out=tmp_path, bit_depth="32f", stems=stems)
    arrays = Separator(fake_backend()).separate(noise, rate, stems=stems)
    for stem, file in result.files.items():
        got = soundfile.read(file, dtype="float32", always_2d=True)[0].T
        np.testing.assert_allclose(arrays[stem], got, atol=1e-6)
    np.testing.assert_allclose(sum(arrays.values()), noise, atol=2e-6)
