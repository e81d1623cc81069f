"""The network's masks and filters put to use, in NumPy; the twin of `tfswa_sep.model.mask_head` in PyTorch.

Axis letters: b batch, s stem of the model, k stem asked for, c channel, f bins, t frames; n samples,
p bins of a token, m some of the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.inference.features import (
    BINS_AT_ONCE,
    FRAMES_AT_ONCE,
    Floats,
    Spectrum,
    phase_turns,
)
from tfswa_sep.inference.stft_numpy import add_frames
from tfswa_sep.model.config import HIGHEST_LOGIT, MASK_FLOOR, SHARE_FLOOR, Band, ModelConfig


def apply_masks(
    masks: Sequence[Floats],
    spectrum: Spectrum,
    mixture: Floats,
    config: ModelConfig,
    stem_matrix: Floats | None = None,
) -> Floats:
    """What the network made of `features.band_features`, as waveforms.

    Args:
        masks: The network's output, (b, s * parts * p, tokens, t) per band.
        spectrum: (b, c, f, t) of the mixture.
        mixture: (b, c, n).
        config: Of the model.
        stem_matrix: (k, s), the stems asked for as sums of the model's; None for the model's own.

    Returns:
        (b, s, c, n), or (b, k, c, n) with a matrix.
    """
    rest = _last_is_residual(config, stem_matrix)
    wanted: Floats | int = (
        len(config.stems) - rest if stem_matrix is None else stem_matrix[: len(stem_matrix) - rest]
    )
    stems = wanted if isinstance(wanted, int) else len(wanted)
    b, c, n = mixture.shape
    waves = np.empty((b, stems + rest, c, n), np.float32)
    masked_waves(masks, spectrum, config, wanted, out=waves[:, :stems])
    if rest:
        np.subtract(mixture, waves[:, :stems].sum(axis=1), out=waves[:, -1])
    return waves


def _last_is_residual(config: ModelConfig, stem_matrix: Floats | None) -> bool:
    """Whether the last stem asked for is what the others leave of the song: it needs no transform."""
    whole = stem_matrix is None or (len(stem_matrix) > 1 and bool((stem_matrix.sum(axis=0) == 1).all()))
    return whole and config.mixture_consistent and len(config.stems) > 1


def masked_frames(
    bands: Sequence[Floats], spectrum: Spectrum, config: ModelConfig, stem_matrix: Floats | int
) -> Iterator[Spectrum]:
    """The stems' spectra of one item of a batch, some frames at a time: see `stft_numpy.add_frames`.

    bands: the network's output, (s * parts * p, tokens, t) each.  spectrum: (c, f, t) of the mixture.
    stem_matrix: a (k, s) matrix applied to the stems, or k for the first k of them as they are.
    Yields (k * c, m, f), written over each time.
    """
    c, f, t = spectrum.shape
    stems = stem_matrix if isinstance(stem_matrix, int) else len(stem_matrix)
    make_mask = _MASKS[config.masks]
    buffer = np.empty((stems, c, FRAMES_AT_ONCE, f), np.complex64)
    taps = [_neighbours(spectrum, band, config) if band.taps else None for band in config.bands]
    for start in range(0, t, FRAMES_AT_ONCE):
        frames = slice(start, min(start + FRAMES_AT_ONCE, t))
        mixture = spectrum[:, :, frames].swapaxes(1, 2)  # (c, m, f), as it lies in memory
        chunk = buffer[:, :, : frames.stop - start]
        for band, values, near in zip(config.bands, bands, taps, strict=True):
            step = max(BINS_AT_ONCE // band.stride, 1)
            parts = values.reshape(len(config.stems), -1, *values.shape[1:])
            for token in range(0, band.tokens, step):
                tile = parts[:, :, token : token + step, frames]
                mask = make_mask(tile[:, : config.mask_parts * band.stride], band, config, stem_matrix)
                low = band.start + token * band.stride
                high = low + mask.shape[-1]
                np.multiply(mask, mixture[:, :, low:high], out=chunk[..., low:high])
                if near is not None:
                    for tap, neighbour in zip(_filters(tile, band, config, stem_matrix), near, strict=True):
                        tap *= neighbour[:, frames, low - band.start : high - band.start]
                        chunk[..., low:high] += tap
                if high == config.bins:  # Nyquist's bin goes with its neighbour
                    np.multiply(mask[..., -1], mixture[:, :, -1], out=chunk[..., -1])
        yield chunk.reshape(stems * c, -1, f)


def masked_waves(
    bands: Sequence[Floats], spectrum: Spectrum, config: ModelConfig, stem_matrix: Floats | int, out: Floats
) -> None:
    """Fill `out`, of which each item is contiguous, with the stems (b, k, c, n) of a batch.

    bands: the network's output, (b, s * parts * p, tokens, t) each.  spectrum: (b, c, f, t) of the mixture.
    stem_matrix: see `masked_frames`.
    """
    _, k, c, n = out.shape
    shape = (k * c, *spectrum.shape[2:])
    for item, waves in enumerate(out):
        chunks = masked_frames([band[item] for band in bands], spectrum[item], config, stem_matrix)
        add_frames(chunks, shape, n_fft=config.n_fft, hop=config.hop, out=waves.reshape(k * c, n))


def _neighbours(spectrum: Spectrum, band: Band, config: ModelConfig) -> Spectrum:
    """What the band's filters are multiplied by: the frames around each, (taps, c, t, f of the band).

    Without the turn that a tone in the middle of a bin makes from frame to frame. Frames outside are zero.
    """
    reach = band.taps // 2
    around = np.pad(spectrum[:, band.start : band.stop].swapaxes(1, 2), ((0, 0), (reach, reach), (0, 0)))
    c, _, t = spectrum.shape
    near = np.empty((band.taps, c, t, band.stop - band.start), np.complex64)
    for i, frames in enumerate(near):
        np.multiply(around[:, i : i + t], phase_turns(band, config, frames=reach - i), out=frames)
    return near


def _filters(
    values: Floats, band: Band, config: ModelConfig, stem_matrix: Floats | int
) -> Iterator[Spectrum]:
    """A tile of the network's output, (s, parts * p, tokens, t), as the filters' taps, (k, c, t, f) each."""
    s, _, tokens, t = values.shape
    c, p = config.channels, band.stride
    taps = values[:, config.mask_parts * p :].reshape(s, c, band.taps, 2, p, tokens, t)
    for i in range(band.taps):
        tap = np.clip(taps[:, :, i], -1, 1)
        if config.mixture_consistent:
            tap -= tap.mean(axis=0)
        real, imaginary = (
            _summed(tap, stem_matrix).transpose(2, 0, 1, 5, 4, 3).reshape(2, -1, c, t, tokens * p)
        )
        yield real + 1j * imaginary


def _real_mask(values: Floats, band: Band, config: ModelConfig, stem_matrix: Floats | int) -> Floats:
    """A tile of the network's output, (s, c * p, tokens, t), as gains (k, c, t, f)."""
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
    return _by_frames(np.multiply, _summed(gains, stem_matrix), share, channels=config.channels)


def _signed_mask(values: Floats, band: Band, config: ModelConfig, stem_matrix: Floats | int) -> Floats:
    """A tile of the network's output, (s, c * p, tokens, t), as numbers (k, c, t, f) between -1 and 1."""
    gains = np.tanh(values)
    share = np.zeros_like(gains)
    if config.mixture_consistent:  # as below
        np.abs(gains, out=share)
        share += np.float32(SHARE_FLOOR)
        share *= (1 - gains.sum(axis=0)) / share.sum(axis=0)
    return _by_frames(
        np.add, _summed(gains, stem_matrix), _summed(share, stem_matrix), channels=config.channels
    )


def _by_frames(combine: np.ufunc, one: Floats, other: Floats, *, channels: int) -> Floats:
    """Two parts (k, c * p, tokens, t), the other perhaps without k, put together as (k, c, t, f)."""
    k, features, tokens, t = one.shape
    shape = (channels, features // channels, tokens, t)
    turned = np.empty((k, channels, t, tokens, shape[1]), np.float32)
    others = other.reshape(*other.shape[:-3], *shape)
    combine(one.reshape(k, *shape), others, out=turned.transpose(0, 1, 4, 3, 2))
    return turned.reshape(k, channels, t, -1)


def _complex_mask(values: Floats, band: Band, config: ModelConfig, stem_matrix: Floats | int) -> Spectrum:
    """A tile of the network's output, (s, c * 2 * p, tokens, t), as masks (k, c, t, f)."""
    s, _, tokens, t = values.shape
    c, p = config.channels, band.stride
    split = values.reshape(s, c, 2, p, tokens, t).swapaxes(3, 4)
    real = split[:, :, 0].reshape(s, c, tokens * p, t)  # a copy: neighbours lie apart
    imaginary = split[:, :, 1].reshape(s, c, tokens * p, t)
    size = real * real
    size += imaginary * imaginary
    size += np.float32(MASK_FLOOR)
    np.sqrt(size, out=size)
    bounded = np.tanh(size)
    np.divide(bounded, size, out=size)  # a magnitude of at most one
    real = real * size
    imaginary = imaginary * size
    if config.mixture_consistent:
        # What the masks leave of one is shared out by their size (Wisdom et al., arXiv:1811.08521).
        bounded += np.float32(SHARE_FLOOR)
        bounded /= bounded.sum(axis=0)
        real += bounded * (1 - real.sum(axis=0))
        imaginary -= bounded * imaginary.sum(axis=0)
    mask = np.empty(real.shape, np.complex64)
    mask.real, mask.imag = real, imaginary
    return _summed(mask, stem_matrix).swapaxes(2, 3)


_MASKS = {"complex": _complex_mask, "signed": _signed_mask, "real": _real_mask}


def _summed(masks: NDArray[Any], stem_matrix: Floats | int) -> NDArray[Any]:
    """Masks (s, ...) of the model's stems as those (k, ...) of the stems asked for."""
    if isinstance(stem_matrix, int):
        return masks[:stem_matrix]
    return np.asarray(np.einsum("ks,s...->k...", stem_matrix, masks))
