"""Apply the network's masks and filters to the mixture, in NumPy; in PyTorch: `tfswa_sep.model.mask_head`.

Axis letters: b batch, s model stem, k requested stem, c channel, f bins, t frames, n samples, p bins per token,
m frames of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.inference.features import TILE_BINS, TILE_FRAMES, Floats, Spectrum, phase_rotations
from tfswa_sep.inference.stft_numpy import add_frames
from tfswa_sep.model.config import HIGHEST_LOGIT, MASK_FLOOR, SHARE_FLOOR, Band, ModelConfig


def apply_masks(
    masks: Sequence[Floats],
    spectrum: Spectrum,
    mixture: Floats,
    config: ModelConfig,
    stem_matrix: Floats | None = None,
    *,
    newest: int | None = None,
) -> Floats:
    """Turn the network's output into the stems' waveforms.

    Args:
        masks: The network's output, (b, s * parts * p, tokens, t) per band.
        spectrum: STFT of the mixture, (b, c, f, t).
        mixture: (b, c, n).
        config: The model's.
        stem_matrix: (k, s), the requested stems as sums of the model's; None for the model's own.
        newest: Return only the last so many samples; None for all.

    Returns:
        (b, s, c, n), or (b, k, c, n) with a matrix.
    """
    if newest is not None:
        # The frames whose windows reach these samples, and those that filters take from before them.
        reach = max(band.taps // 2 for band in config.bands)
        frames = -(-(newest + config.n_fft // 2) // config.hop) + reach + 1
        if frames < spectrum.shape[-1] and mixture.shape[-1] % config.hop == 0:
            masks = [band[..., -frames:] for band in masks]
            spectrum, mixture = spectrum[..., -frames:], mixture[..., -(frames - 1) * config.hop :]
        return apply_masks(masks, spectrum, mixture, config, stem_matrix)[..., -newest:]
    stems = len(config.stems) if stem_matrix is None else len(stem_matrix)
    masked = stems - 1 if _last_is_residual(config, stem_matrix) else stems
    b, c, n = mixture.shape
    waves = np.empty((b, stems, c, n), np.float32)
    for item in range(b):
        chunks = masked_frames(
            [band[item] for band in masks],
            spectrum[item],
            config,
            masked if stem_matrix is None else stem_matrix[:masked],
        )
        out = waves[item, :masked].reshape(masked * c, n)
        add_frames(chunks, (masked * c, *spectrum.shape[2:]), n_fft=config.n_fft, hop=config.hop, out=out)
    if masked < stems:
        np.subtract(mixture, waves[:, :masked].sum(axis=1), out=waves[:, -1])
    return waves


def _last_is_residual(config: ModelConfig, stem_matrix: Floats | None) -> bool:
    """Whether the last stem is the mixture minus the others, which saves an inverse transform."""
    complete = stem_matrix is None or (len(stem_matrix) > 1 and bool((stem_matrix.sum(axis=0) == 1).all()))
    return complete and config.mixture_consistent and len(config.stems) > 1


def masked_frames(
    bands: Sequence[Floats], spectrum: Spectrum, config: ModelConfig, stem_matrix: Floats | int
) -> Iterator[Spectrum]:
    """The stems' spectra of one batch item, in chunks of frames for `stft_numpy.add_frames`.

    Args:
        bands: The network's output, (s * parts * p, tokens, t) per band.
        spectrum: STFT of the mixture, (c, f, t).
        config: The model's.
        stem_matrix: A (k, s) matrix applied to the stems, or k for the model's first k.

    Yields:
        (k * c, m, f), in a buffer that the next chunk overwrites.
    """
    c, f, t = spectrum.shape
    stems = stem_matrix if isinstance(stem_matrix, int) else len(stem_matrix)
    make_mask = _MASKS[config.masks]
    buffer = np.empty((stems, c, TILE_FRAMES, f), np.complex64)
    neighbours = [_neighbours(spectrum, band, config) if band.taps else None for band in config.bands]
    for start in range(0, t, TILE_FRAMES):
        frames = slice(start, min(start + TILE_FRAMES, t))
        mixture = spectrum[:, :, frames].swapaxes(1, 2)  # (c, m, f), contiguous
        chunk = buffer[:, :, : frames.stop - start]
        for band, values, frames_around in zip(config.bands, bands, neighbours, strict=True):
            step = max(TILE_BINS // band.stride, 1)
            parts = values.reshape(len(config.stems), -1, *values.shape[1:])
            for token in range(0, band.tokens, step):
                tile = parts[:, :, token : token + step, frames]
                mask = make_mask(tile[:, : config.mask_parts * band.stride], band, config, stem_matrix)
                low = band.start + token * band.stride
                high = low + mask.shape[-1]
                np.multiply(mask, mixture[:, :, low:high], out=chunk[..., low:high])
                if frames_around is not None:
                    filters = _filters(tile, band, config, stem_matrix)
                    filters *= frames_around[:, None, :, frames, low - band.start : high - band.start]
                    chunk[..., low:high] += filters.sum(axis=0)
                if high == config.bins:  # the Nyquist bin shares its neighbour's mask
                    np.multiply(mask[..., -1], mixture[:, :, -1], out=chunk[..., -1])
        yield chunk.reshape(stems * c, -1, f)


def _neighbours(spectrum: Spectrum, band: Band, config: ModelConfig) -> Spectrum:
    """The frames that a band's filters span around each frame, (taps, c, t, bins of the band); zero outside.

    Phases are rotated back by the advance of a tone at its bin's centre from frame to frame.
    """
    reach = band.taps // 2
    around = np.pad(spectrum[:, band.start : band.stop].swapaxes(1, 2), ((0, 0), (reach, reach), (0, 0)))
    c, _, t = spectrum.shape
    shifted = np.empty((band.taps, c, t, band.stop - band.start), np.complex64)
    for i, frames in enumerate(shifted):
        np.multiply(around[:, i : i + t], phase_rotations(band, config, frames=reach - i), out=frames)
    return shifted


def _filters(values: Floats, band: Band, config: ModelConfig, stem_matrix: Floats | int) -> Spectrum:
    """The filters (taps, k, c, t, f) from a tile of the network's output, (s, parts * p, tokens, t)."""
    tokens, t = values.shape[2:]
    c, p = config.channels, band.stride
    taps = np.clip(values[:, config.mask_parts * p :], -1, 1)
    if config.mixture_consistent:
        taps -= taps.mean(axis=0)
    taps = _sum_stems(taps, stem_matrix).reshape(-1, c, band.taps, 2, p, tokens, t)
    filters = np.empty((band.taps, len(taps), c, t, tokens, p), np.complex64)
    filters.real, filters.imag = taps.transpose(3, 2, 0, 1, 6, 5, 4)
    return filters.reshape(band.taps, len(taps), c, t, tokens * p)


def _real_mask(values: Floats, band: Band, config: ModelConfig, stem_matrix: Floats | int) -> Floats:
    """Gains (k, c, t, f) from a tile of the network's output, (s, c * p, tokens, t)."""
    gains = np.clip(values, -HIGHEST_LOGIT, HIGHEST_LOGIT)
    if config.mixture_consistent:  # a softmax over the stems
        np.exp(gains, out=gains)
        share = gains.sum(axis=0)
        np.reciprocal(share, out=share)
    else:  # sigmoids
        np.negative(gains, out=gains)
        np.exp(gains, out=gains)
        gains += 1
        np.reciprocal(gains, out=gains)
        share = np.ones_like(gains[0])
    return _combine_by_frame(np.multiply, _sum_stems(gains, stem_matrix), share, channels=config.channels)


def _signed_mask(values: Floats, band: Band, config: ModelConfig, stem_matrix: Floats | int) -> Floats:
    """Gains (k, c, t, f) between -1 and 1 from a tile of the network's output, (s, c * p, tokens, t)."""
    gains = np.tanh(values)
    share = np.zeros_like(gains)
    if config.mixture_consistent:  # as in _complex_mask
        np.abs(gains, out=share)
        share += np.float32(SHARE_FLOOR)
        share *= (1 - gains.sum(axis=0)) / share.sum(axis=0)
    return _combine_by_frame(
        np.add, _sum_stems(gains, stem_matrix), _sum_stems(share, stem_matrix), channels=config.channels
    )


def _combine_by_frame(operation: np.ufunc, a: Floats, b: Floats, *, channels: int) -> Floats:
    """`operation` of `a` (k, c * p, tokens, t) and `b`, of the same shape or without k, as (k, c, t, f)."""
    k, features, tokens, t = a.shape
    shape = (channels, features // channels, tokens, t)
    result = np.empty((k, channels, t, tokens, shape[1]), np.float32)
    b = b.reshape(*b.shape[:-3], *shape)
    operation(a.reshape(k, *shape), b, out=result.transpose(0, 1, 4, 3, 2))
    return result.reshape(k, channels, t, -1)


def _complex_mask(values: Floats, band: Band, config: ModelConfig, stem_matrix: Floats | int) -> Spectrum:
    """Complex masks (k, c, t, f) from a tile of the network's output, (s, c * 2 * p, tokens, t)."""
    s, _, tokens, t = values.shape
    c, p = config.channels, band.stride
    split = values.reshape(s, c, 2, p, tokens, t).swapaxes(3, 4)
    real = split[:, :, 0].reshape(s, c, tokens * p, t)  # a copy: the axes are not adjacent
    imaginary = split[:, :, 1].reshape(s, c, tokens * p, t)
    scale = real * real
    scale += imaginary * imaginary
    scale += np.float32(MASK_FLOOR)
    np.sqrt(scale, out=scale)
    magnitude = np.tanh(scale)
    np.divide(magnitude, scale, out=scale)  # bounds the magnitude by one
    real = real * scale
    imaginary = imaginary * scale
    if config.mixture_consistent:
        # What the masks lack to sum to one is shared out by magnitude (Wisdom et al., arXiv:1811.08521).
        magnitude += np.float32(SHARE_FLOOR)
        magnitude /= magnitude.sum(axis=0)
        real += magnitude * (1 - real.sum(axis=0))
        imaginary -= magnitude * imaginary.sum(axis=0)
    mask = np.empty(real.shape, np.complex64)
    mask.real, mask.imag = real, imaginary
    return _sum_stems(mask, stem_matrix).swapaxes(2, 3)


_MASKS = {"complex": _complex_mask, "signed": _signed_mask, "real": _real_mask}


def _sum_stems(masks: NDArray[Any], stem_matrix: Floats | int) -> NDArray[Any]:
    """Sum the model's masks (s, ...) into those of the requested stems (k, ...)."""
    if isinstance(stem_matrix, int):
        return masks[:stem_matrix]
    return np.asarray(np.einsum("ks,s...->k...", stem_matrix, masks))
