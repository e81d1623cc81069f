"""Augmentation of batches: each kind by itself, and that the stems still add up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")

from torch import Generator, Tensor

from tfswa_sep.errors import UsageError
from training.configuration import load_config
from training.data import augment
from training.data.augment import Augmentation

RATE = 44_100


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def noise(b: int = 6, s: int = 3, n: int = 4096) -> Tensor:
    return 0.1 * Tensor(torch.randn(b, s, 2, n, generator=seeded(1)))


def config(*overrides: str) -> SimpleNamespace:
    return load_config(["data=musdb18", "data.root=x", *overrides]).data.augment  # type: ignore[no-any-return]


def test_gain_by_hand() -> None:
    x = noise(200)
    y = augment.gain(x, p=1.0, decibels=6.0, generator=seeded())
    decibels = 20 * torch.log10(y.norm(dim=(2, 3)) / x.norm(dim=(2, 3)))
    assert decibels.abs().max() <= 6.001 and decibels.abs().max() > 5.5
    assert decibels.std() == pytest.approx(12 / 12**0.5, rel=0.1)  # of a uniform distribution
    assert torch.equal(augment.gain(x, p=0.0, decibels=6.0, generator=seeded()), x)
    some = (augment.gain(x, p=0.3, decibels=6.0, generator=seeded()) != x).any(dim=3).any(dim=2)
    assert some.float().mean() == pytest.approx(0.3, abs=0.06)


def test_pan_keeps_the_power_of_a_centred_sound() -> None:
    x = noise(50)[:, :, :1].expand(-1, -1, 2, -1)
    y = augment.pan(x, p=1.0, generator=seeded())
    torch.testing.assert_close(y.square().sum(dim=2), x.square().sum(dim=2))
    assert (y[:, :, 0].abs().sum(dim=2) / y[:, :, 1].abs().sum(dim=2)).log().abs().max() > 2


def test_swap_and_sign_by_hand() -> None:
    x = noise()
    assert torch.equal(augment.swap_channels(x, p=1.0, generator=seeded()), x[:, :, [1, 0]])
    assert torch.equal(augment.flip_sign(x, p=1.0, generator=seeded()), -x)


@pytest.mark.parametrize("channels", [1, 2])
def test_channel_mixing_is_one_matrix_from_the_same_draws(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stems, known = noise(8)[:, :, :channels], torch.ones(8, 3)
    kinds = ("gain", "pan", "swap", "sign")
    settings = config("data.augment.remix.p=0", *(f"data.augment.{kind}.p=0.5" for kind in kinds))
    x, generator = torch.cat([stems, torch.zeros_like(stems[:, :1])], dim=1), seeded()
    x = augment.gain(x, p=0.5, decibels=settings.gain.decibels, generator=generator)
    x = augment.pan(x, p=0.5, generator=generator)
    x = augment.swap_channels(x, p=0.5, generator=generator)
    x = augment.flip_sign(x, p=0.5, generator=generator)
    for name in ("gain", "pan", "swap_channels", "flip_sign"):  # none of them processes the samples
        monkeypatch.setattr(augment, name, _small_only(getattr(augment, name)))
    mixture, augmented, _ = Augmentation(settings)((stems.sum(dim=1), stems, known), generator=seeded())
    torch.testing.assert_close(augmented, x[:, :-1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixture, x.sum(dim=1), rtol=1e-5, atol=1e-6)


def _small_only(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def checked(x: Tensor, **settings: Any) -> Tensor:
        assert x.shape[-1] <= 2
        return change(x, **settings)

    return checked


def test_remix_uses_every_stem_once_and_keeps_the_rest() -> None:
    x = noise(8)
    y, known = augment.remix(x, torch.ones(8, 2), p=1.0, generator=seeded())
    assert torch.equal(y[:, -1], x[:, -1]) and known.all()
    for stem in (0, 1):
        assert sorted(y[:, stem, 0, 0].tolist()) == sorted(x[:, stem, 0, 0].tolist())
        assert not torch.equal(y[:, stem], x[:, stem])
    orders = [
        [x[:, stem, 0, 0].tolist().index(value) for value in y[:, stem, 0, 0].tolist()] for stem in (0, 1)
    ]
    assert orders[0] != orders[1]
    known = torch.ones(8, 2)
    known[3, 1] = 0  # another stem may contain it: unknown wherever that song contributes
    mixed = augment.remix(x, known, p=1.0, generator=seeded())[1]
    places = [3, *(order.index(3) for order in orders)]
    assert (mixed[:, 0] == 1).all()
    assert {i for i in range(8) if not mixed[i, 1]} == set(places)


def test_mixup_by_hand() -> None:
    x = torch.arange(1.0, 5.0)[:, None, None, None].expand(4, 3, 2, 10)
    known = torch.tensor([[1.0, 1], [1, 0], [1, 1], [1, 1]])
    y, both = augment.mixup(x, known, p=1.0, alpha=0.4, generator=seeded())
    shares = (y[:, 0, 0, 0] - x.roll(1, 0)[:, 0, 0, 0]) / (x - x.roll(1, 0))[:, 0, 0, 0]
    assert ((shares > 0) & (shares < 1)).all() and shares.std() > 0
    torch.testing.assert_close(
        y, (shares[:, None, None, None] * x + (1 - shares[:, None, None, None]) * x.roll(1, 0))
    )
    assert both.tolist() == [[1, 1], [1, 0], [1, 0], [1, 1]]
    many, _ = augment.mixup(
        torch.tensor([0.0, 1.0]).repeat(2000)[:, None, None, None], torch.ones(4000, 0), p=1.0, alpha=0.4,
        generator=seeded(),
    )  # fmt: skip
    # Beta(0.4, 0.4) has a variance of 1 / (4 * 1.8) about a half
    assert many.var().item() == pytest.approx(1 / 7.2, rel=0.1) and many.mean().item() == pytest.approx(
        0.5, abs=0.02
    )


def test_stems_add_up_and_the_generator_decides() -> None:
    change = Augmentation(config("data.augment.mixup.p=0.5", "data.augment.pan.p=0.5"))
    stems = noise(6, 4)
    rest, known = 0.1 * torch.randn(6, 2, 4096, generator=seeded(2)), torch.ones(6, 4)
    known[2, 1:] = 0
    batch = stems.sum(dim=1) + rest, stems, known
    mixture, after, still = change(batch, generator=seeded(3))
    again = change(batch, generator=seeded(3))
    assert torch.equal(mixture, again[0]) and torch.equal(after, again[1])
    assert not torch.equal(mixture, change(batch, generator=seeded(4))[0])
    assert mixture.shape == rest.shape and after.shape == stems.shape and not torch.equal(after, stems)
    assert not still[2, 1:].any() and still[:, 0].all()
    # The rest of the mixture is a linear combination of the old rests.
    left = (mixture - after.sum(dim=1)).flatten(1)
    basis = torch.stack([rest[i, c] for i in range(6) for c in range(2)])
    fitted = torch.linalg.lstsq(basis.T, left.view(12, -1).T).solution
    torch.testing.assert_close(basis.T @ fitted, left.view(12, -1).T, atol=1e-4, rtol=0)
    assert Augmentation(None)(batch, generator=seeded()) == batch


def test_lowpass_removes_what_is_above() -> None:
    t = torch.arange(RATE) / RATE
    low, high = torch.sin(2 * torch.pi * 500 * t), torch.sin(2 * torch.pi * 9000 * t)
    stems = torch.stack([low, high])[None, :, None].expand(1, 2, 2, -1)
    mixture, after, _ = augment.lowpass((stems.sum(dim=1), stems, torch.ones(1, 2)), 4000)
    torch.testing.assert_close(after[0, 0, 0], low, atol=5e-3, rtol=0)  # of float32 phases
    assert after[0, 1].abs().max() < 5e-3
    torch.testing.assert_close(mixture, after.sum(dim=1), atol=1e-4, rtol=0)


def test_what_needs_torchaudio_is_refused_without_it() -> None:
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        with pytest.raises(UsageError, match="need torchaudio"):
            Augmentation(config("data.augment.pitch.p=0.5"))
    else:
        Augmentation(config("data.augment.pitch.p=0.5"))


def strongest(wave: Tensor) -> float:
    return float(torch.fft.rfft(wave).abs().argmax()) * RATE / len(wave)


@pytest.fixture
def tones() -> Tensor:
    """(2, 2, 2, n): 440 and 1000 Hz, in two examples."""
    pytest.importorskip("torchaudio", exc_type=ImportError)
    t = torch.arange(2 * RATE) / RATE
    waves: Tensor = torch.stack([torch.sin(2 * torch.pi * f * t) for f in (440.0, 1000.0)])
    return waves[None, :, None].repeat(2, 1, 2, 1)


@pytest.mark.torchaudio
def test_time_is_stretched_at_its_pitch(tones: Tensor) -> None:
    lengths = set()
    for seed in range(6):
        y = augment.stretch_time(tones, p=1.0, most=0.2, generator=seeded(seed))
        assert y.shape == tones.shape
        middle = slice(RATE // 4, RATE)
        for stem, hertz in enumerate((440, 1000)):
            assert strongest(y[0, stem, 0, middle]) == pytest.approx(hertz, abs=3)
        lengths.add(int((y[0, 0, 0].abs() > 1e-3).nonzero().max()))
    assert len(lengths) > 1 and min(lengths) < 1.95 * RATE


@pytest.mark.torchaudio
def test_pitch_is_shifted_at_its_speed(tones: Tensor) -> None:
    pitches = set()
    for seed in range(6):
        y = augment.shift_pitch(tones, p=1.0, semitones=2.0, generator=seeded(seed))
        middle = slice(RATE // 4, RATE)
        low, high = (strongest(y[1, stem, 0, middle]) for stem in (0, 1))
        assert y.shape == tones.shape and high / low == pytest.approx(1000 / 440, rel=0.02)  # alike
        assert 440 * 2 ** (-2.2 / 12) < low < 440 * 2 ** (2.2 / 12)
        pitches.add(round(low))
    assert len(pitches) > 1


@pytest.mark.torchaudio
def test_spec_augment_silences_a_band_and_a_stretch_of_all_stems() -> None:
    pytest.importorskip("torchaudio", exc_type=ImportError)
    x, state = noise(2, 3, 65_536), torch.random.get_rng_state()
    y = augment.spec_augment(x, p=1.0, bins=200, frames=40, generator=seeded(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(augment.spec_augment(x, p=1.0, bins=200, frames=40, generator=seeded(2)), y)

    def spectrum(wave: Tensor) -> Tensor:
        window = torch.hann_window(2048)
        parts: Tensor = torch.stft(wave.flatten(0, 1), 2048, 512, window=window, return_complex=True)
        return parts.abs()

    for before, after in zip(x, y, strict=True):
        ratio = spectrum(after).mean(dim=2) / spectrum(before).mean(dim=2)  # (s * c, f)
        bands, frames = ratio < 0.05, spectrum(after).mean(dim=1) / spectrum(before).mean(dim=1) < 0.05
        # the same of all stems and channels, but for what the windows smear at the edges
        assert (bands ^ bands[0]).sum(dim=1).max() <= 2 and (frames ^ frames[0]).sum(dim=1).max() <= 4
        assert bands[0].any() or frames[0].any()
        assert bands[0].sum() < 200 and frames[0].sum() < 40
    assert torch.equal(augment.spec_augment(x, p=0.0, bins=200, frames=40, generator=seeded()), x)
