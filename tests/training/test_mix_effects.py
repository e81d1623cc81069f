"""Effects on chunks: filters, limiter, lossy coder."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor

from training.mixing import effects
from training.mixing.effects import EQ_POINTS, Filters

RATE, LENGTH = 44_100, 20_000
FLAT = np.zeros(len(EQ_POINTS))


@pytest.fixture(scope="module")
def filters() -> Filters:
    return Filters(LENGTH, sample_rate=RATE, seed=0, device=torch.device("cpu"))


def tone(hertz: float, n: int) -> Tensor:
    wave: Tensor = torch.sin(2 * math.pi * hertz * torch.arange(n) / RATE)[None]
    return wave


def strongest(x: Tensor) -> float:
    """Hz of the highest bin of (1, n)."""
    spectrum = torch.fft.rfft(x[0] * torch.hann_window(x.shape[1])).abs()
    return float(spectrum.argmax()) * float(RATE / x.shape[1])


def noise(n: int, seed: int = 0) -> Tensor:
    samples: Tensor = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.2, (2, n)).astype(np.float32))
    return samples


@pytest.mark.parametrize("n", [2, 1023, 154_350, 262_145])
def test_fft_lengths_are_even_and_smooth(n: int) -> None:
    length = effects.fft_length(n)
    assert length >= n and length % 2 == 0 and length < n * 1.05 + 2
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    assert length == 1


@pytest.mark.parametrize("ratio", [0.75, 1.0, 1.3])
def test_a_chunk_is_played_faster_and_higher(filters: Filters, ratio: float) -> None:
    read, size = filters.read_size(ratio)
    played = filters.apply(tone(1000, read), size, filters.equalizer(FLAT))
    assert played.shape == (1, LENGTH)
    assert strongest(played) == pytest.approx(1000 * ratio, abs=15)
    middle = played[0, 2000:-2000]
    assert float(middle.abs().max()) == pytest.approx(1, abs=0.05)


def test_nothing_changes_without_an_effect(filters: Filters) -> None:
    x = noise(LENGTH)
    torch.testing.assert_close(filters.apply(x, filters.size, filters.equalizer(FLAT)), x, atol=1e-5, rtol=0)


def test_there_is_enough_noise_for_long_chunks_and_the_same_for_short_ones(filters: Filters) -> None:
    long = Filters(7 * RATE, sample_rate=RATE, seed=0, device=torch.device("cpu"))
    read, _ = long.read_size(2 ** (5 / 12))
    assert read > 8 * RATE
    assert long.noise(read, np.random.default_rng(0)).shape == (2, read)
    table = np.random.default_rng((0, 0)).standard_normal((2, 8 * RATE), np.float32)
    samples = filters.noise(8 * RATE - 1, np.random.default_rng(0))  # only one start is possible
    np.testing.assert_array_equal(samples.numpy(), table[:, :-1])


def test_the_equalizer_has_the_requested_gains(filters: Filters) -> None:
    response = filters.equalizer(np.array([0.0, 0, 0, 6, -12, 0]))
    for hertz, decibels in ((50, 0), (1200, 6), (4000, -12), (20_000, 0)):
        level = 20 * math.log10(response[round(hertz * filters.size / RATE)])
        assert level == pytest.approx(decibels, abs=0.3)


def test_a_low_pass_keeps_the_band_and_nothing_above(filters: Filters) -> None:
    response = filters.low_pass(8000)
    for hertz, gain in ((7600, 1), (8000, 0.5), (8400, 0)):
        assert float(response[round(hertz * filters.size / RATE)]) == pytest.approx(gain, abs=0.02)


def test_a_high_pass_falls_by_12_db_per_octave_below_its_cutoff(filters: Filters) -> None:
    response = filters.high_pass(200)
    assert float(response[0]) == 0
    for hertz, decibels in ((2000, 0), (200, -3.01), (100, -12.3), (50, -24.1)):
        index = round(hertz * filters.size / RATE)
        assert 20 * math.log10(response[index]) == pytest.approx(decibels, abs=0.3)


def test_an_echo_comes_after_the_sound(filters: Filters) -> None:
    click = torch.zeros(1, LENGTH)
    click[0, 100] = 1
    response = filters.reverb(np.random.default_rng(1), room=False, echo=True)
    output = filters.apply(click, filters.size, response)
    assert output.shape == (2, LENGTH) and float(output[0, 100]) == pytest.approx(1, abs=1e-4)
    (late,) = torch.nonzero(output[0, 2000:] > 0.1).flatten()[:1]
    assert 0.05 * RATE < 2000 + late - 100 < 0.25 * RATE


def test_a_room_adds_a_decaying_tail(filters: Filters) -> None:
    click = torch.zeros(1, LENGTH)
    click[0, 0] = 1
    output = filters.apply(
        click, filters.size, filters.reverb(np.random.default_rng(0), room=True, echo=False)
    )
    power = output.square().sum(dim=0)
    assert 0 < float(power[1500:].sum()) < 1 and float(output[:, 0].min()) == pytest.approx(1, abs=1e-4)
    assert not torch.equal(output[0], output[1])


@pytest.mark.parametrize("ceiling", [0.05, 0.3])
def test_a_limiter_holds_the_ceiling_at_every_sample(ceiling: float) -> None:
    x = noise(30_001)
    x[:, 7000] = 0.99
    x[:, 12_000:13_000] *= 3
    gain = effects.limiter_gain(x, ceiling)
    assert gain.shape == (30_001,) and float((x * gain).abs().max()) <= ceiling * (1 + 1e-5)
    assert torch.allclose(effects.limiter_gain(x, 10.0), torch.ones(30_001))
    assert float(gain.max()) <= 1 and float(gain.diff().abs().max()) < 0.01  # no click


def test_a_compressor_removes_a_share_of_the_level_above_the_threshold() -> None:
    x = tone(1000, 40_000).repeat(2, 1)
    x[:, :20_000] *= 0.1
    gain = effects.limiter_gain(x, 0.1, share=0.75)
    assert gain[2000:14_000].min() > 0.999
    decibels = 20 * math.log10(float(gain[30_000]))
    assert decibels == pytest.approx(-15, abs=0.1)  # of the 20 dB above the threshold


def test_the_codec_adds_noise_that_follows_the_signal() -> None:
    x = torch.cat([noise(40_000), torch.zeros(2, 40_000)], dim=1)
    coded = effects.simulate_codec(x, np.random.default_rng(0))
    assert coded.shape == x.shape and torch.isfinite(coded).all()
    added = coded - x
    share = float(added[:, :38_000].square().sum() / x.square().sum())
    assert 1e-3 < share < 0.3
    assert float(added[:, 44_000:].abs().max()) < 1e-5
