"""The steps between the STFT and the network: its input features, and the application of its masks and filters.

On a CPU both backends use the same in NumPy (`tfswa_sep.inference.features` and `mask_apply`).
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
    """The network's input features, one tensor per band.

    They are the magnitudes |X|^0.3 of every channel and, unless `features` is "magnitude", of mid and side, since
    panning is a strong cue. "complex" puts the compressed real and imaginary parts first. "advance" instead puts
    those of X(t) X*(t - 1) first, rotated back by the phase advance of a tone at the bin's centre: the
    remaining advance shows where between two bins a tone is, and whether it is a tone at all.

    Args:
        mixture: STFT of the mixture without the Nyquist bin, (b, 2c, bins, t).
        config: The model's.

    Returns:
        (b, features, bins of the band, t) per band.
    """
    real, imaginary = mixture[:, 0::2], mixture[:, 1::2]
    parts = [(real, imaginary)]
    if config.features != "magnitude" and real.shape[1] == 2:
        parts += [((x[:, :1] + x[:, 1:]) / 2, (y[:, :1] + y[:, 1:]) / 2) for x, y in parts]
        parts += [((x[:, :1] - x[:, 1:]) / 2, (y[:, :1] - y[:, 1:]) / 2) for x, y in parts[:1]]
    powers = [x * x + y * y + POWER_FLOOR for x, y in parts]
    # exp(log) is several times faster than a power in ONNX Runtime (measured).
    magnitudes = torch.cat([torch.exp(torch.log(power) * (COMPRESSION / 2)) for power in powers], dim=1)
    bands = []
    for band in config.bands:
        rows = slice(band.start, band.stop)
        features = magnitudes[:, :, rows]
        if config.sees_phases(band):
            phases = _phases(mixture[:, :, rows], powers[0][:, :, rows], band, config)
            scale = features[:, : real.shape[1]]
            features = torch.cat([part * scale for part in phases] + [features], dim=1)
        bands.append(features)
    return bands


def _phases(mixture: Tensor, powers: Tensor, band: Band, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Phases or their advance as unit complex numbers: real and imaginary parts, (b, c, f, t) each."""
    real, imaginary = mixture[:, 0::2], mixture[:, 1::2]
    scale = torch.rsqrt(powers)
    if config.features == "advance":
        previous = functional.pad(mixture[..., :-1], (1, 0))
        previous = rotate_phases(previous, frames=1, config=config, first=band.start)
        x, y = previous[:, 0::2], previous[:, 1::2]
        scale = scale * functional.pad(scale[..., :-1], (1, 0))
        real, imaginary = real * x + imaginary * y, imaginary * x - real * y
    return real * scale, imaginary * scale


def rotate_phases(spectrum: Tensor, *, frames: int, config: ModelConfig, first: int) -> Tensor:
    """Rotate bins from `first` on, (b, 2c, f, t), by the phase advance of a tone at each bin's centre over
    `frames`.
    """
    bins = torch.arange(first, first + spectrum.shape[2], device=spectrum.device)
    angle = (bins * (frames * config.hop) % config.n_fft) * (2 * torch.pi / config.n_fft)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    real, imaginary = spectrum[:, 0::2], spectrum[:, 1::2]
    return torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=2).flatten(1, 2)


def apply_masks(masks: Tensor, filters: Sequence[Tensor], mixture: Tensor, config: ModelConfig) -> Tensor:
    """Bound the masks, multiply the mixture by them, and add the filters' output.

    Args:
        masks: (b, s, mask_parts, bins, t).
        filters: (b, s, 2 * c * taps, bins of the band, t) for each band that has filters.
        mixture: STFT of the mixture, (b, 2c, bins + 1, t).
        config: The model's.

    Returns:
        (b, s, 2c, bins + 1, t)
    """
    masks = torch.cat([masks, masks[..., -1:, :]], dim=-2)  # the Nyquist bin shares its neighbour's mask
    if config.masks == "complex":
        stems = _masked_by_complex(masks, mixture, consistent=config.mixture_consistent)
        # Fabric's hooks crash torch on a view that was changed in place: pytorch#196459.
        stems = stems.clone() if filters else stems
    else:
        bound = _signed_gains if config.masks == "signed" else _real_gains
        gains = bound(masks, consistent=config.mixture_consistent)
        stems = gains.repeat_interleave(2, dim=2) * mixture[:, None]
    for band, values in zip([band for band in config.bands if band.taps], filters, strict=True):
        stems[:, :, :, band.start : band.stop] += _filtered(values, mixture, band, config)
    return stems


def _real_gains(masks: Tensor, *, consistent: bool) -> Tensor:
    """Gains between 0 and 1."""
    masks = masks.clamp(-HIGHEST_LOGIT, HIGHEST_LOGIT)
    return torch.softmax(masks, dim=1) if consistent else torch.sigmoid(masks)


def _signed_gains(masks: Tensor, *, consistent: bool) -> Tensor:
    """Gains between -1 and 1, before their remainder is shared out."""
    gains = torch.tanh(masks)
    if consistent:  # as in _masked_by_complex
        share = gains.abs() + SHARE_FLOOR
        gains = gains + share * ((1 - gains.sum(dim=1, keepdim=True)) / share.sum(dim=1, keepdim=True))
    return gains


def _masked_by_complex(masks: Tensor, mixture: Tensor, *, consistent: bool) -> Tensor:
    """The stems' spectra, (b, s, 2c, f, t)."""
    real, imaginary = masks[:, :, 0::2], masks[:, :, 1::2]  # (b, s, c, f, t)
    radius = (real * real + imaginary * imaginary + MASK_FLOOR).sqrt()
    bound = torch.tanh(radius) / radius  # bounds the magnitude by one
    real, imaginary = real * bound, imaginary * bound
    if consistent:
        # What the masks lack to sum to one is shared out by magnitude (Wisdom et al., arXiv:1811.08521).
        share = radius * bound + SHARE_FLOOR
        share = share / share.sum(dim=1, keepdim=True)
        real = real + share * (1 - real.sum(dim=1, keepdim=True))
        imaginary = imaginary - share * imaginary.sum(dim=1, keepdim=True)
    return _product(real, imaginary, mixture)


def _product(real: Tensor, imaginary: Tensor, mixture: Tensor) -> Tensor:
    """Complex masks (b, s, c, f, t) times a spectrum (b, 2c, f, t): (b, s, 2c, f, t)."""
    a, b = mixture[:, None, 0::2], mixture[:, None, 1::2]
    return torch.stack([real * a - imaginary * b, real * b + imaginary * a], dim=3).flatten(2, 3)


def _filtered(filters: Tensor, mixture: Tensor, band: Band, config: ModelConfig) -> Tensor:
    """Apply each stem's complex filters over time: deep filtering (Mack and Habets, arXiv:1904.08369, equation 2).

    A mask cannot change a bin's phase or tell two tones in one bin apart; neighbouring frames can. With
    `mixture_consistent`, the filters sum to zero, so the stems still sum to the mixture.

    Args:
        filters: (b, s, 2 * c * taps, bins of the band, t).
        mixture: STFT of the mixture, (b, 2c, bins + 1, t).
        band: The filters' band.
        config: The model's.

    Returns:
        (b, s, 2c, bins of the band, t)
    """
    reach, t = band.taps // 2, mixture.shape[-1]
    around = functional.pad(mixture[:, :, band.start : band.stop], (reach, reach))
    taps = rearrange(filters, "b s (c i two) f t -> i two b s c f t", i=band.taps, two=2).clamp(-1, 1)
    if config.mixture_consistent:
        taps = taps - taps.mean(dim=3, keepdim=True)
    total = mixture.new_zeros(())
    for i, (real, imaginary) in enumerate(taps):
        # Rotated so that a tone at its bin's centre has the same phase in all frames.
        shifted = rotate_phases(around[..., i : i + t], frames=reach - i, config=config, first=band.start)
        total = total + _product(real, imaginary, shifted)
    return total
