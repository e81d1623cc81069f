"""Augmentation of whole batches on the training device; the stems still add up to the mixture.

Whatever the stems leave of a mixture is augmented as one more stem. Time stretch, pitch shift and SpecAugment need
torchaudio unless their probability is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tfswa_sep.constants import HOP, N_FFT, SAMPLE_RATE
from tfswa_sep.errors import UsageError
from tfswa_sep.model.stft_torch import istft, stft
from training.data.loader import Batch

STEPS = 8  # of stretch and pitch in each direction; one is drawn per batch


class Augmentation:
    """Applies a `data.augment` config to batches; None leaves them unchanged.

    Probabilities are per stem for gain, pan, swap, sign and remix, and per example for the others. Raises UsageError if
    torchaudio is needed and cannot be imported.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        if settings and (settings.stretch.p or settings.pitch.p or settings.spec_augment.p):
            try:
                import torchaudio  # noqa: F401
            except (ImportError, OSError) as error:
                raise UsageError(
                    "stretch, pitch and spec_augment need torchaudio, which cannot be imported"
                    f" ({str(error).splitlines()[0]}): install torch and torchaudio 2.11, or set their p to 0"
                ) from error

    def __call__(self, batch: Batch, *, generator: torch.Generator) -> Batch:
        """A batch -> an augmented one of the same shapes; `generator` is the only source of randomness."""
        if not self.settings:
            return batch
        settings = self.settings
        mixture, stems, known = batch
        # The stems and the rest of the mixture: (b, s + 1, c, n)
        x = torch.cat([stems, (mixture - stems.sum(dim=1))[:, None]], dim=1)
        x, known = remix(x, known, p=settings.remix.p, generator=generator)
        # These four are linear: applied to the unit matrix, they give one matrix for a single pass over the samples.
        matrix = torch.eye(x.shape[2]).to(x).expand(*x.shape[:3], -1)
        matrix = gain(matrix, p=settings.gain.p, decibels=settings.gain.decibels, generator=generator)
        matrix = pan(matrix, p=settings.pan.p, generator=generator)
        matrix = swap_channels(matrix, p=settings.swap.p, generator=generator)
        x = flip_sign(matrix, p=settings.sign.p, generator=generator) @ x
        x, known = mixup(x, known, p=settings.mixup.p, alpha=settings.mixup.alpha, generator=generator)
        x = stretch_time(x, p=settings.stretch.p, most=settings.stretch.most, generator=generator)
        x = shift_pitch(x, p=settings.pitch.p, semitones=settings.pitch.semitones, generator=generator)
        spec = settings.spec_augment
        x = spec_augment(x, p=spec.p, bins=spec.bins, frames=spec.frames, generator=generator)
        return x.sum(dim=1), x[:, :-1].contiguous(), known


def _bernoulli(shape: tuple[int, ...], p: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Booleans that are true with probability `p`, on the device of `like`."""
    return (torch.rand(shape, generator=generator) < p).to(like.device)


def gain(x: Tensor, *, p: float, decibels: float, generator: torch.Generator) -> Tensor:
    """Change levels by up to `decibels`, uniformly. x (b, s, c, n)"""
    b, s = x.shape[:2]
    level = (2 * torch.rand(b, s, generator=generator) - 1).to(x) * decibels
    factor = torch.where(_bernoulli((b, s), p, generator, x), 10 ** (level / 20), 1.0)
    return x * factor[:, :, None, None]


def pan(x: Tensor, *, p: float, generator: torch.Generator) -> Tensor:
    """Pan stereo at constant power, by up to 45 degrees. x (b, s, c, n); unchanged unless c is 2"""
    b, s, c, _ = x.shape
    angle = torch.rand(b, s, generator=generator).to(x) * (torch.pi / 2)
    sides = torch.stack([angle.cos(), angle.sin()], dim=2) * 2**0.5
    sides = torch.where(_bernoulli((b, s), p, generator, x)[:, :, None], sides, 1.0)
    return x * sides[..., None] if c == 2 else x


def swap_channels(x: Tensor, *, p: float, generator: torch.Generator) -> Tensor:
    """Swap left and right. x (b, s, c, n)"""
    return torch.where(_bernoulli(x.shape[:2], p, generator, x)[:, :, None, None], x.flip(2), x)


def flip_sign(x: Tensor, *, p: float, generator: torch.Generator) -> Tensor:
    """Invert the polarity. x (b, s, c, n)"""
    return torch.where(_bernoulli(x.shape[:2], p, generator, x)[:, :, None, None], -x, x)


def remix(x: Tensor, known: Tensor, *, p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exchange stems between examples, each stem in an order of its own.

    The last one, the rest of the mixture, stays. Afterwards a stem of an example counts as known only if it was known
    in every example that contributed: an unknown stem may be contained in their other stems.

    x (b, s + 1, c, n), known (b, s)
    """
    b, s = x.shape[:2]
    if b < 2 or not p:
        return x, known
    source = torch.arange(b)[:, None].repeat(1, s)  # which example each stem comes from
    for i in range(s - 1):
        order = torch.randperm(b, generator=generator)
        if torch.rand((), generator=generator) < p:
            source[:, i] = order
    source = source.to(x.device)
    return x[source, torch.arange(s, device=x.device)], known[source].amin(dim=1)


def mixup(
    x: Tensor, known: Tensor, *, p: float, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each example with its neighbour in the batch, with weights from Beta(alpha, alpha).

    A stem stays known only if both know it. Zhang et al., arXiv:1710.09412. x (b, s + 1, c, n), known (b, s)
    """
    b = len(x)
    if b < 2 or not p:
        return x, known
    # torch's Beta takes no generator; it is the share of one gamma variable in the sum of two.
    gammas = torch._standard_gamma(torch.full((2, b), float(alpha)), generator=generator).clamp(min=1e-12)
    weight = torch.where(torch.rand(b, generator=generator) < p, gammas[0] / gammas.sum(dim=0), 1.0).to(x)
    known = torch.where(weight[:, None] < 1, known * known.roll(1, 0), known)
    weight = weight[:, None, None, None]
    return weight * x + (1 - weight) * x.roll(1, 0), known


def stretch_time(x: Tensor, *, p: float, most: float, generator: torch.Generator) -> Tensor:
    """Change the tempo by up to the fraction `most` with a phase vocoder. x (b, s, c, n)

    The stems of an example change alike. Shorter results are padded with silence.
    """
    speed = 1 + most * _draw_step(generator)
    return _apply_to_some(
        x, lambda waves: _fit_length(_vocode(waves, speed), x.shape[-1]), p=p, generator=generator
    )


def shift_pitch(x: Tensor, *, p: float, semitones: float, generator: torch.Generator) -> Tensor:
    """Shift the pitch by up to `semitones`, the stems of an example alike. x (b, s, c, n)

    Stretches, then resamples by a ratio of small integers that is off by a few cents. torchaudio's pitch_shift
    resamples between rates that may share no factor, with filters of gigabytes.
    """

    def change(waves: Tensor) -> Tensor:
        from torchaudio.functional import resample

        longer = _vocode(waves, 1 / float(ratio))
        return _fit_length(resample(longer, ratio.numerator, ratio.denominator), waves.shape[-1])

    ratio = Fraction(2 ** (semitones * _draw_step(generator) / 12)).limit_denominator(16)
    return _apply_to_some(x, change, p=p if ratio != 1 else 0.0, generator=generator)


def _vocode(x: Tensor, speed: float) -> Tensor:
    """(..., n) -> (..., n / speed) at the same pitch."""
    from torchaudio.functional import phase_vocoder

    window = torch.hann_window(N_FFT, device=x.device)
    spectrum = torch.stft(x.flatten(0, -2), N_FFT, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * HOP, N_FFT // 2 + 1, device=x.device)[:, None]
    length = round(x.shape[-1] / speed)
    waves = torch.istft(phase_vocoder(spectrum, speed, advance), N_FFT, HOP, window=window, length=length)
    return waves.view(*x.shape[:-1], length)


def _fit_length(x: Tensor, n: int) -> Tensor:
    """Cut to `n` samples or pad with silence."""
    return torch.nn.functional.pad(x[..., :n], (0, max(n - x.shape[-1], 0)))


def spec_augment(x: Tensor, *, p: float, bins: int, frames: int, generator: torch.Generator) -> Tensor:
    """Silence a band of up to `bins` and a stretch of up to `frames`, the same in every stem of an example.

    Park et al., arXiv:1904.08779. x (b, s, c, n)
    """

    def change(waves: Tensor) -> Tensor:
        from torchaudio.functional import mask_along_axis

        spectrum = torch.stack([stft(wave) for wave in waves])  # (b, s, 2c, f, t)
        # torchaudio draws from the global generator: seed it from ours, and restore its state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            masked = []
            for example in spectrum:
                silenced = mask_along_axis(example.flatten(0, 1), bins, 0.0, 1)
                masked.append(mask_along_axis(silenced, frames, 0.0, 2).view(example.shape))
        return istft(torch.stack(masked), length=waves.shape[-1])

    return _apply_to_some(x, change, p=p, generator=generator)


def _draw_step(generator: torch.Generator) -> float:
    """A multiple of 1 / STEPS between -1 and 1."""
    return int(torch.randint(-STEPS, STEPS + 1, (), generator=generator)) / STEPS


def _apply_to_some(
    x: Tensor, change: Callable[[Tensor], Tensor], *, p: float, generator: torch.Generator
) -> Tensor:
    """Apply `change` to each example with probability `p`."""
    chosen = torch.rand(len(x), generator=generator) < p
    if not chosen.any():
        return x
    indices = chosen.nonzero()[:, 0].to(x.device)
    changed: Tensor = x.index_copy(0, indices, change(x[indices]))
    return changed


def lowpass(batch: Batch, highest: float) -> Batch:
    """Remove everything above `highest` Hz from mixtures and stems, for the first phases of a progressive run."""
    mixture, stems, known = batch

    def low_passed(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        frequencies = torch.fft.rfftfreq(x.shape[-1], 1 / SAMPLE_RATE, device=x.device)
        filtered: Tensor = torch.fft.irfft(spectrum * (frequencies <= highest), n=x.shape[-1])
        return filtered

    return low_passed(mixture), low_passed(stems), known
