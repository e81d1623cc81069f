"""Vocal effects."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor

from training.mixing import voices

RATE, N = 44_100, 30_000
EFFECTS = ("formant", "whisper", "growl", "drive", "harmony", "double", "choir")


def vowel(hertz: float = 200.0, formant: float = 1000.0) -> Tensor:
    """Harmonics of `hertz` under one resonance, (1, N)."""
    time = torch.arange(N) / RATE
    x = torch.zeros(N)
    for k in range(1, int(8000 / hertz)):
        x += math.exp(-((math.log2(k * hertz / formant) / 0.5) ** 2)) * torch.sin(
            2 * math.pi * hertz * k * time
        )
    sung: Tensor = 0.2 * x[None]
    return sung


def white(n: int = N) -> Tensor:
    noise: Tensor = torch.from_numpy(np.random.default_rng(0).standard_normal((2, n)).astype(np.float32))
    return noise


def spectrum(x: Tensor) -> Tensor:
    size: Tensor = torch.fft.rfft(x[0] * torch.hann_window(x.shape[1])).abs()
    return size


def pitch(x: Tensor) -> float:
    """Hz by autocorrelation, between 100 and 500."""
    correlation = torch.fft.irfft(torch.fft.rfft(x[0], 2 * x.shape[1]).abs().square())
    first, last = RATE // 500, RATE // 100
    return float(RATE / (first + int(correlation[first:last].argmax())))


def centroid(x: Tensor) -> float:
    power = spectrum(x).square()
    return float((power * torch.arange(len(power))).sum() / power.sum()) * float(RATE / x.shape[1])


@pytest.mark.parametrize("tempo", [0.8, 1.25])
def test_another_tempo_keeps_the_pitch(tempo: float) -> None:
    sung = voices.resynthesize(vowel(), round(N / tempo))
    assert sung.shape == (1, round(N / tempo))
    assert pitch(sung) == pytest.approx(200, abs=2)
    level = float(sung.square().mean() / vowel().square().mean())
    assert 0.5 < level < 1.5


@pytest.mark.parametrize("ratio", [0.82, 1.2])
def test_formants_shift_at_constant_pitch(ratio: float) -> None:
    moved = voices.resynthesize(vowel(), N, formant=ratio)
    assert pitch(moved) == pytest.approx(200, abs=2)
    assert centroid(moved) / centroid(vowel()) == pytest.approx(ratio, abs=0.1)


def test_nothing_changes_without_an_effect() -> None:
    torch.testing.assert_close(voices.resynthesize(vowel(), N), vowel(), atol=1e-4, rtol=0)
    assert torch.equal(voices.perform(vowel(), N, np.random.default_rng(0), {}, white()), vowel())


def test_a_whisper_has_the_formants_and_no_pitch() -> None:
    whispered = voices.resynthesize(vowel(), N, noise=white()[:1])
    assert centroid(whispered) == pytest.approx(centroid(vowel()), rel=0.4)
    sharp, blunt = (
        float(spectrum(x).max() / spectrum(x).square().mean().sqrt()) for x in (vowel(), whispered)
    )
    assert blunt < sharp / 3
    assert 0.3 < float(whispered.square().mean() / vowel().square().mean()) < 3


def test_a_growl_modulates_at_its_rate() -> None:
    rough = voices.add_growl(vowel(400.0), np.random.default_rng(0))
    loudness = rough[0].unfold(0, 220, 55).square().mean(dim=1)
    wobble = torch.fft.rfft(loudness - loudness.mean()).abs()
    hertz = float(wobble.argmax()) * RATE / 55 / len(loudness)
    assert 15 < hertz < 110
    steady = vowel(400.0)[0].unfold(0, 220, 55).square().mean(dim=1)
    assert float(loudness.std() / loudness.mean()) > 3 * float(steady.std() / steady.mean())


def test_doubles_are_panned_left_and_right() -> None:
    double = voices.add_doubles(vowel(), np.random.default_rng(0), pairs=1)
    assert double.shape == (2, N) and not torch.equal(double[0], double[1])


@pytest.mark.parametrize("effect", EFFECTS)
def test_every_effect_returns_a_whole_chunk(effect: str) -> None:
    for seed in range(3):
        x = vowel()[:, : N - 1000]
        for sound in (x, x.repeat(2, 1), torch.zeros_like(x)):
            y = voices.perform(sound, N, np.random.default_rng(seed), {effect: 1.0}, white())
            assert y.shape[0] in (1, 2) and y.shape[1] == N and torch.isfinite(y).all()
            assert (float(y.abs().max()) > 0.01) == bool(sound.any())
