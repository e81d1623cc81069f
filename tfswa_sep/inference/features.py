"""The network's input features, in NumPy; in PyTorch: `tfswa_sep.model.mask_head`.

Features and masks stay outside the ONNX graph: there every operation streams the whole map through memory, here a
tile stays in the core's cache (0.09 s per segment on one core instead of 0.24, measured).

Axis letters: b batch, c channel, f bins, t frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.model.config import COMPRESSION, POWER_FLOOR, Band, ModelConfig

Floats = NDArray[np.float32]
Spectrum = NDArray[np.complex64]

TILE_FRAMES = 64
TILE_BINS = 128


def band_features(spectrum: Spectrum, config: ModelConfig) -> list[Floats]:
    """The features of each band, as `model.mask_head.band_features` defines them.

    Args:
        spectrum: (b, c, f, t), from `stft_numpy.stft`.
        config: The model's.

    Returns:
        (b, features, bins of the band, t) per band.
    """
    b, _, _, t = spectrum.shape
    bands = [
        np.empty((b, config.feature_count(band), band.stop - band.start, t), np.float32)
        for band in config.bands
    ]
    for item, start in np.ndindex(b, -(-t // TILE_FRAMES)):
        frames = slice(start * TILE_FRAMES, (start + 1) * TILE_FRAMES)
        for band, target in zip(config.bands, bands, strict=True):
            for low in range(band.start, band.stop, TILE_BINS):
                bins = slice(low, min(low + TILE_BINS, band.stop))
                rows = slice(bins.start - band.start, bins.stop - band.start)
                _fill_features(spectrum[item, :, bins, frames], target[item, :, rows, frames], config)
    if config.features == "advance":
        for band, target in zip(config.bands, bands, strict=True):
            if config.sees_phases(band):
                _fill_phase_advance(spectrum[:, :, band.start : band.stop], target, band, config)
    return bands


def _fill_features(tile: Spectrum, target: Floats, config: ModelConfig) -> None:
    """Fill `target` (features, f, t) from `tile` (c, f, t), whose memory layout is (c, t, f).

    Magnitudes come last; with `complex` features, real and imaginary parts precede them.
    """
    c, f, t = tile.shape
    stereo = config.features != "magnitude" and c == 2
    count = c + 2 if stereo else c
    real, imaginary = np.empty((2, count, t, f), np.float32)
    real[:c], imaginary[:c] = tile.real.swapaxes(1, 2), tile.imag.swapaxes(1, 2)
    if stereo:  # mid and side
        for part in (real, imaginary):
            np.add(part[0], part[1], out=part[2])
            np.subtract(part[0], part[1], out=part[3])
            part[2:] *= np.float32(0.5)
    power = real * real
    power += np.square(imaginary)
    power += np.float32(POWER_FLOOR)
    magnitude = np.log(power)
    magnitude *= np.float32(COMPRESSION / 2)
    np.exp(magnitude, out=magnitude)
    by_frame = target.swapaxes(1, 2)  # (features, t, f)
    by_frame[-count:] = magnitude
    if config.features == "complex":
        scale = magnitude[:c] / np.sqrt(power[:c])
        by_frame[:c] = np.multiply(real[:c], scale, out=real[:c])
        by_frame[c : 2 * c] = np.multiply(imaginary[:c], scale, out=imaginary[:c])


def _fill_phase_advance(spectrum: Spectrum, target: Floats, band: Band, config: ModelConfig) -> None:
    """Fill a band's first features, (b, features, f, t), with the phase advance since the previous frame."""
    c = config.channels
    previous = np.zeros_like(spectrum)
    previous[..., 1:] = spectrum[..., :-1] * phase_rotations(band, config, frames=1)[:, None]
    magnitude = np.sqrt(np.square(np.abs(spectrum)) + np.float32(POWER_FLOOR))
    scale = target[:, 2 * c : 3 * c] / magnitude
    scale[..., 1:] /= magnitude[..., :-1]  # in two divisions: the product could overflow
    advance = spectrum * np.conj(previous, out=previous)
    np.multiply(advance.real, scale, out=target[:, :c])
    np.multiply(advance.imag, scale, out=target[:, c : 2 * c])


def phase_rotations(band: Band, config: ModelConfig, *, frames: int) -> Spectrum:
    """The phase that a tone at each bin's centre advances in `frames` frames: unit complex numbers, (f,)."""
    steps = np.arange(band.start, band.stop) * frames * config.hop % config.n_fft
    rotations: Spectrum = np.exp(2j * np.pi / config.n_fft * steps).astype(np.complex64)
    return rotations
