"""Augmentation of whole batches, on the device that trains: stems in, other stems out, and they still add up.

What is in a mixture but in no known stem goes along as one more stem. Time stretch, pitch shift and
SpecAugment are torchaudio's, which has to be installed where their probability is not 0.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tfswa_sep.errors import UsageError
from tfswa_sep.model.stft_torch import istft, stft
from training.data.loader import Batch
from training.data.tracks import SAMPLE_RATE

N_FFT, HOP = 2048, 512  # of the time stretch, samples
STRETCH_STEPS, PITCH_STEPS = 8, 8  # ratios to each side: one a batch is drawn


class Augmentation:
    """What a `data.augment` config says; None: batches stay as they are.

    Each kind has its own probability: of a stem for gain, pan, swap, sign and remix; of a whole example for
    the others. Raises UsageError where torchaudio is asked for and cannot be imported.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        if settings and (settings.stretch.p or settings.pitch.p or settings.spec_augment.p):
            try:
                import torchaudio  # noqa: F401
            except (ImportError, OSError) as error:
                raise UsageError(
                    "stretch, pitch and spec_augment need torchaudio, which cannot be imported here"
                    f" ({str(error).splitlines()[0]}): install torch and torchaudio 2.11, or set their p to 0"
                ) from error

    def __call__(self, batch: Batch, *, generator: torch.Generator) -> Batch:
        """(b, c, n), (b, s, c, n), (b, s) -> the same shapes; all randomness comes from `generator`."""
        if not self.settings:
            return batch
        settings = self.settings
        mixture, stems, known = batch
        # Known stems and the rest of the mixture: (b, s + 1, c, n)
        x = torch.cat([stems, (mixture - stems.sum(dim=1))[:, None]], dim=1)
        x, known = remix(x, known, p=settings.remix.p, generator=generator)
        # What these four make of the unit matrix they make of every sample: one pass over the waves, not four.
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


def _chosen(shape: tuple[int, ...], p: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """True with probability `p`."""
    return (torch.rand(shape, generator=generator) < p).to(like.device)


def gain(x: Tensor, *, p: float, decibels: float, generator: torch.Generator) -> Tensor:
    """Louder or softer by up to `decibels`, uniformly. x (b, s, c, n)"""
    b, s = x.shape[:2]
    level = (2 * torch.rand(b, s, generator=generator) - 1).to(x) * decibels
    factor = torch.where(_chosen((b, s), p, generator, x), 10 ** (level / 20), 1.0)
    return x * factor[:, :, None, None]


def pan(x: Tensor, *, p: float, generator: torch.Generator) -> Tensor:
    """Towards one side at constant power, by up to 45 degrees. x (b, s, 2, n); other channel counts stay."""
    b, s, c, _ = x.shape
    angle = torch.rand(b, s, generator=generator).to(x) * (torch.pi / 2)
    sides = torch.stack([angle.cos(), angle.sin()], dim=2) * 2**0.5
    sides = torch.where(_chosen((b, s), p, generator, x)[:, :, None], sides, 1.0)
    return x * sides[..., None] if c == 2 else x


def swap_channels(x: Tensor, *, p: float, generator: torch.Generator) -> Tensor:
    """Left becomes right. x (b, s, c, n)"""
    return torch.where(_chosen(x.shape[:2], p, generator, x)[:, :, None, None], x.flip(2), x)


def flip_sign(x: Tensor, *, p: float, generator: torch.Generator) -> Tensor:
    """Upside down. x (b, s, c, n)"""
    return torch.where(_chosen(x.shape[:2], p, generator, x)[:, :, None, None], -x, x)


def remix(x: Tensor, known: Tensor, *, p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Stems change places with those of other examples, each stem by an order of its own.

    The last one, the unknown rest, stays: its mixture's unknown stems are in it. Afterwards a stem is known
    where all examples knew it that something came from: an unknown one may lie in any of their other stems.

    x (b, s + 1, c, n), known (b, s)
    """
    b, s = x.shape[:2]
    if b < 2 or not p:
        return x, known
    source = torch.arange(b)[:, None].repeat(1, s)  # the example that each stem comes from
    for i in range(s - 1):
        order = torch.randperm(b, generator=generator)
        if torch.rand((), generator=generator) < p:
            source[:, i] = order
    source = source.to(x.device)
    return x[source, torch.arange(s, device=x.device)], known[source].amin(dim=1)


def mixup(
    x: Tensor, known: Tensor, *, p: float, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend an example with its neighbour in the batch, shares by Beta(alpha, alpha); both must know a stem.

    Zhang et al., arXiv:1710.09412. x (b, s + 1, c, n), known (b, s)
    """
    b = len(x)
    if b < 2 or not p:
        return x, known
    # A beta variable is the share of one of two gamma variables; torch's own takes no generator.
    parts = torch._standard_gamma(torch.full((2, b), float(alpha)), generator=generator).clamp(min=1e-12)
    share = torch.where(torch.rand(b, generator=generator) < p, parts[0] / parts.sum(dim=0), 1.0).to(x)
    factor = share[:, None, None, None]
    both = torch.where(share[:, None] < 1, known * known.roll(1, 0), known)
    return factor * x + (1 - factor) * x.roll(1, 0), both


def stretch_time(x: Tensor, *, p: float, most: float, generator: torch.Generator) -> Tensor:
    """Slower or faster by up to the share `most`, at the same pitch: a phase vocoder. x (b, s, c, n)

    All stems of an example alike. What becomes shorter ends in silence.
    """
    speed = 1 + most * _step(STRETCH_STEPS, generator)
    return _on_some(x, lambda waves: _fit(_vocode(waves, speed), x.shape[-1]), p=p, generator=generator)


def shift_pitch(x: Tensor, *, p: float, semitones: float, generator: torch.Generator) -> Tensor:
    """Higher or lower by up to `semitones`, all stems of an example alike. x (b, s, c, n)

    Stretched, then resampled by a ratio of small numbers, a few cents beside the tempered one: torchaudio's
    own pitch_shift resamples between rates that may share no factor, with filters of gigabytes.
    """

    def change(waves: Tensor) -> Tensor:
        from torchaudio.functional import resample

        longer = _vocode(waves, 1 / float(ratio))
        return _fit(resample(longer, ratio.numerator, ratio.denominator), waves.shape[-1])

    step = _step(PITCH_STEPS, generator)
    ratio = Fraction(2 ** (semitones * step / 12)).limit_denominator(16)
    return _on_some(x, change, p=p if ratio != 1 else 0.0, generator=generator)


def _vocode(x: Tensor, speed: float) -> Tensor:
    """(..., n) -> (..., n / speed), at the same pitch"""
    from torchaudio.functional import phase_vocoder

    window = torch.hann_window(N_FFT, device=x.device)
    spectrum = torch.stft(x.flatten(0, -2), N_FFT, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * HOP, N_FFT // 2 + 1, device=x.device)[:, None]
    length = round(x.shape[-1] / speed)
    found = torch.istft(phase_vocoder(spectrum, speed, advance), N_FFT, HOP, window=window, length=length)
    return found.view(*x.shape[:-1], length)


def _fit(x: Tensor, n: int) -> Tensor:
    """The first `n` samples, silence where there are fewer."""
    return torch.nn.functional.pad(x[..., :n], (0, max(n - x.shape[-1], 0)))


def spec_augment(x: Tensor, *, p: float, bins: int, frames: int, generator: torch.Generator) -> Tensor:
    """A band of up to `bins` and a stretch of up to `frames` become silent, in every stem of an example.

    Park et al., arXiv:1904.08779. x (b, s, c, n)
    """

    def change(waves: Tensor) -> Tensor:
        from torchaudio.functional import mask_along_axis

        spectrum = torch.stack([stft(wave) for wave in waves])  # (b, s, 2c, f, t)
        # torchaudio draws from the global generator: give it ours, and put back what was there.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            masked = [
                mask_along_axis(mask_along_axis(one.flatten(0, 1), bins, 0.0, 1), frames, 0.0, 2).view(
                    one.shape
                )
                for one in spectrum
            ]
        return istft(torch.stack(masked), length=waves.shape[-1])

    return _on_some(x, change, p=p, generator=generator)


def _step(steps: int, generator: torch.Generator) -> float:
    """One of the numbers between -1 and 1 that lie 1 / steps apart."""
    return int(torch.randint(-steps, steps + 1, (), generator=generator)) / steps


def _on_some(
    x: Tensor, change: Callable[[Tensor], Tensor], *, p: float, generator: torch.Generator
) -> Tensor:
    """Change examples with probability `p` each."""
    chosen = torch.rand(len(x), generator=generator) < p
    if not chosen.any():
        return x
    indices = chosen.nonzero()[:, 0].to(x.device)
    changed: Tensor = x.index_copy(0, indices, change(x[indices]))
    return changed


def lowpass(batch: Batch, highest: float) -> Batch:
    """Take out what lies above `highest` Hz of mixtures and stems: what a progressive run begins with."""
    mixture, stems, known = batch

    def cut(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        frequencies = torch.fft.rfftfreq(x.shape[-1], 1 / SAMPLE_RATE, device=x.device)
        low: Tensor = torch.fft.irfft(spectrum * (frequencies <= highest), n=x.shape[-1])
        return low

    return cut(mixture), cut(stems), known
