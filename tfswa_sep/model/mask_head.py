"""What lies between spectrogram and network: the features that it sees, and its masks put to use.

`tfswa_sep.inference.mask_apply` is the same in NumPy, with which both backends separate on a processor.
Axis letters: see `tfswa_sep.model.config`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from tfswa_sep.model.config import (
    COMPRESSION,
    HIGHEST_LOGIT,
    MASK_FLOOR,
    POWER_FLOOR,
    SHARE_FLOOR,
    Band,
    ModelConfig,
)


def band_features(mixture: Tensor, config: ModelConfig) -> list[Tensor]:
    """What the network sees of the mixture, a tensor a band.

    (b, 2c, bins, t) -> (b, features, bins of the band, t) each. Magnitudes |X|^0.3 of every channel and,
    unless they are all, for two channels also of their half sum and half difference (where a voice sits is a
    strong cue). In front of them `complex` puts the compressed real and imaginary parts, and `advance` those
    of X(t) X*(t - 1), turned back as a tone in the middle of its bin turns: how far a phase goes on from one
    frame to the next tells where between two bins a tone lies, and whether it is one.
    """
    real, imaginary = mixture[:, 0::2], mixture[:, 1::2]
    parts = [(real, imaginary)]
    if config.features != "magnitude" and real.shape[1] == 2:
        parts += [((x[:, :1] + x[:, 1:]) / 2, (y[:, :1] + y[:, 1:]) / 2) for x, y in parts]
        parts += [((x[:, :1] - x[:, 1:]) / 2, (y[:, :1] - y[:, 1:]) / 2) for x, y in parts[:1]]
    powers = [x * x + y * y + POWER_FLOOR for x, y in parts]
    # exp(log) is several times faster than a power of any exponent in ONNX Runtime (measured).
    magnitudes = torch.cat([torch.exp(torch.log(power) * (COMPRESSION / 2)) for power in powers], dim=1)
    found = []
    for band in config.bands:
        rows = slice(band.start, band.stop)
        seen = magnitudes[:, :, rows]
        if config.sees_phases(band):
            phases = _phases(mixture[:, :, rows], powers[0][:, :, rows], band, config)
            sizes = seen[:, : real.shape[1]]
            seen = torch.cat([part * sizes for part in phases] + [seen], dim=1)
        found.append(seen)
    return found


def _phases(mixture: Tensor, powers: Tensor, band: Band, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Phases or their advance as complex numbers of size one: real and imaginary parts, (b, c, f, t) each."""
    real, imaginary = mixture[:, 0::2], mixture[:, 1::2]
    scale = torch.rsqrt(powers)
    if config.features == "advance":
        before = turned(functional.pad(mixture[..., :-1], (1, 0)), frames=1, config=config, first=band.start)
        x, y = before[:, 0::2], before[:, 1::2]
        scale = scale * functional.pad(scale[..., :-1], (1, 0))
        real, imaginary = real * x + imaginary * y, imaginary * x - real * y
    return real * scale, imaginary * scale


def turned(spectrum: Tensor, *, frames: int, config: ModelConfig, first: int) -> Tensor:
    """Bins from `first` on, (b, 2c, f, t), turned as tones in their middles turn in so many frames."""
    bins = torch.arange(first, first + spectrum.shape[2], device=spectrum.device)
    angle = (bins * (frames * config.hop) % config.n_fft) * (2 * torch.pi / config.n_fft)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    real, imaginary = spectrum[:, 0::2], spectrum[:, 1::2]
    return torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=2).flatten(1, 2)


def apply_masks(masks: Tensor, filters: Sequence[Tensor], mixture: Tensor, config: ModelConfig) -> Tensor:
    """Bound the masks, multiply, and add what the filters bring.

    masks (b, s, mask_parts, bins, t), filters (b, s, 2 * c * taps, bins of the band, t) for each band that
    has them, mixture (b, 2c, bins + 1, t) -> (b, s, 2c, bins + 1, t)
    """
    masks = torch.cat([masks, masks[..., -1:, :]], dim=-2)  # Nyquist's bin goes with its neighbour
    if config.masks == "complex":
        stems = _complex(masks, mixture, consistent=config.mixture_consistent)
        # A hook on a view that was changed in place, as Fabric sets one, crashes torch: pytorch#196459.
        stems = stems.clone() if filters else stems
    else:
        gains = (_signed if config.masks == "signed" else _real)(masks, consistent=config.mixture_consistent)
        stems = gains.repeat_interleave(2, dim=2) * mixture[:, None]
    for band, values in zip([band for band in config.bands if band.taps], filters, strict=True):
        stems[:, :, :, band.start : band.stop] += _filtered(values, mixture, band, config)
    return stems


def _real(masks: Tensor, *, consistent: bool) -> Tensor:
    """Gains between 0 and 1."""
    masks = masks.clamp(-HIGHEST_LOGIT, HIGHEST_LOGIT)
    return torch.softmax(masks, dim=1) if consistent else torch.sigmoid(masks)


def _signed(masks: Tensor, *, consistent: bool) -> Tensor:
    """Gains between -1 and 1, before what they leave of one is shared out."""
    gains = torch.tanh(masks)
    if consistent:  # as below
        share = gains.abs() + SHARE_FLOOR
        gains = gains + share * ((1 - gains.sum(dim=1, keepdim=True)) / share.sum(dim=1, keepdim=True))
    return gains


def _complex(masks: Tensor, mixture: Tensor, *, consistent: bool) -> Tensor:
    """The stems."""
    real, imaginary = masks[:, :, 0::2], masks[:, :, 1::2]  # (b, s, c, f, t)
    radius = (real * real + imaginary * imaginary + MASK_FLOOR).sqrt()
    bound = torch.tanh(radius) / radius  # a magnitude of at most one
    real, imaginary = real * bound, imaginary * bound
    if consistent:
        # What the masks leave of one is shared out by their size (Wisdom et al., arXiv:1811.08521).
        share = radius * bound + SHARE_FLOOR
        share = share / share.sum(dim=1, keepdim=True)
        real = real + share * (1 - real.sum(dim=1, keepdim=True))
        imaginary = imaginary - share * imaginary.sum(dim=1, keepdim=True)
    return _product(real, imaginary, mixture)


def _product(real: Tensor, imaginary: Tensor, mixture: Tensor) -> Tensor:
    """Complex numbers (b, s, c, f, t) times a spectrum (b, 2c, f, t): (b, s, 2c, f, t)"""
    a, b = mixture[:, None, 0::2], mixture[:, None, 1::2]
    return torch.stack([real * a - imaginary * b, real * b + imaginary * a], dim=3).flatten(2, 3)


def _filtered(filters: Tensor, mixture: Tensor, band: Band, config: ModelConfig) -> Tensor:
    """What complex filters over a bin's frames add to each stem: "deep filtering".

    Mack and Habets, arXiv:1904.08369, equation 2, along time alone. A mask leaves a bin's phase as it is, and
    two tones in one bin together; neighbouring frames tell them apart. The stems still sum to the mixture.

    (b, s, 2 * c * taps, bins of the band, t), (b, 2c, bins + 1, t) -> (b, s, 2c, bins of the band, t)
    """
    reach, t = band.taps // 2, mixture.shape[-1]
    around = functional.pad(mixture[:, :, band.start : band.stop], (reach, reach))
    taps = rearrange(filters, "b s (c i two) f t -> i two b s c f t", i=band.taps, two=2).clamp(-1, 1)
    if config.mixture_consistent:
        taps = taps - taps.mean(dim=3, keepdim=True)
    found = mixture.new_zeros(())
    for i, (real, imaginary) in enumerate(taps):
        # A tone in the middle of its bin then is the same in all frames, whichever bin it is.
        near = turned(around[..., i : i + t], frames=reach - i, config=config, first=band.start)
        found = found + _product(real, imaginary, near)
    return found
