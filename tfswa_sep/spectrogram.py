"""Waveform <-> complex spectrogram, in NumPy, and the real-valued layout that the network sees.

Equal to torch.stft and torch.istft with a periodic Hann window, center=True, pad_mode="constant" and no
normalisation. It lives outside the ONNX graph because ONNX Runtime refuses an exported inverse STFT.

Axis letters: b batch, s stem, c channel, n samples, f bins (n_fft // 2 + 1), t frames (n // hop + 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

N_FFT = 2048  # samples a frame: 46 ms at 44.1 kHz
HOP = 512  # samples between frames: 12 ms at 44.1 kHz

# Frames and bins are handled in tiles that stay in the core's own cache: transposing tile by tile took
# a third of the time of one large transpose (measured).
_FRAMES_AT_ONCE = 128
_BINS_AT_ONCE = 128


def stft(samples: NDArray[np.float32], *, n_fft: int = N_FFT, hop: int = HOP) -> NDArray[np.complex64]:
    """Short-time Fourier transform of (..., n) samples.

    Returns (..., f, t) complex64, a view whose memory is (..., t, f). The ends are padded by n_fft // 2
    zeros, so that frame i is centred on sample i * hop.
    Raises ValueError if hop does not divide n_fft.
    """
    window = _hann(n_fft, hop)
    samples = np.asarray(samples, dtype=np.float32)
    length = samples.shape[-1]
    flat = samples.reshape(-1, length)
    frames = length // hop + 1
    spectrum = np.empty((len(flat), frames, n_fft // 2 + 1), dtype=np.complex64)
    padded = np.zeros(length + 2 * (n_fft // 2), dtype=np.float32)
    for channel, target in zip(flat, spectrum, strict=True):
        padded[n_fft // 2 : n_fft // 2 + length] = channel
        framed = sliding_window_view(padded, n_fft)[::hop]  # (t, n_fft), no copy
        for start in range(0, frames, _FRAMES_AT_ONCE):
            chunk = slice(start, start + _FRAMES_AT_ONCE)
            np.fft.rfft(framed[chunk] * window, axis=-1, out=target[chunk])
    return spectrum.reshape(*samples.shape[:-1], frames, n_fft // 2 + 1).swapaxes(-1, -2)


def istft(
    spectrum: NDArray[np.complex64], *, n_fft: int = N_FFT, hop: int = HOP, length: int
) -> NDArray[np.float32]:
    """Inverse of `stft`: (..., f, t) complex to (..., length) float32 samples.

    Windowed frames are added up and divided by the summed squared window. Samples after the last frame are 0.
    Raises ValueError if hop does not divide n_fft or f is not n_fft // 2 + 1.
    """
    bins, frames = spectrum.shape[-2:]
    flat = spectrum.swapaxes(-1, -2).reshape(-1, frames, bins)
    samples = _add_frames(
        (np.array_split(channel, range(_FRAMES_AT_ONCE, frames, _FRAMES_AT_ONCE)) for channel in flat),
        (len(flat), frames, bins),
        n_fft,
        hop,
        length,
    )
    return samples.reshape(*spectrum.shape[:-2], length)


def istft_channels(
    parts: NDArray[np.float32], *, n_fft: int = N_FFT, hop: int = HOP, length: int
) -> NDArray[np.float32]:
    """`istft(from_channels(parts))`: (b, s, 2c, f, t) to (b, s, c, length), faster and without the copy.

    The complex frames are made few at a time, so that they never leave the core's own cache.
    """
    b, s, twice_c, f, t = parts.shape
    pairs = parts.reshape(-1, 2, f, t)
    samples = _add_frames((_complex_frames(pair) for pair in pairs), (len(pairs), t, f), n_fft, hop, length)
    return samples.reshape(b, s, twice_c // 2, length)


def to_channels(spectrum: NDArray[np.complex64]) -> NDArray[np.float32]:
    """(b, c, f, t) complex to (b, 2c, f, t) float32, in the order [c0 real, c0 imaginary, c1 real, ...]."""
    b, c, f, t = spectrum.shape
    parts = np.empty((b, c, 2, f, t), dtype=np.float32)
    for start in range(0, f, _BINS_AT_ONCE):
        strip = slice(start, start + _BINS_AT_ONCE)
        parts[:, :, 0, strip] = spectrum.real[:, :, strip]
        parts[:, :, 1, strip] = spectrum.imag[:, :, strip]
    return parts.reshape(b, 2 * c, f, t)


def from_channels(parts: NDArray[np.float32]) -> NDArray[np.complex64]:
    """(b, s, 2c, f, t) float32 to (b, s, c, f, t) complex64, the inverse of `to_channels` for every stem."""
    b, s, twice_c, f, t = parts.shape
    pairs = parts.reshape(b, s, twice_c // 2, 2, f, t)
    spectrum = np.empty((b, s, twice_c // 2, f, t), dtype=np.complex64)
    spectrum.real, spectrum.imag = pairs[:, :, :, 0], pairs[:, :, :, 1]
    return spectrum


def _complex_frames(pair: NDArray[np.float32]) -> Iterator[NDArray[np.complex64]]:
    """(2, f, t) real and imaginary parts as chunks of complex frames (m, f), each written over the last."""
    _, f, t = pair.shape
    buffer = np.empty((_FRAMES_AT_ONCE, f), dtype=np.complex64)
    for start in range(0, t, _FRAMES_AT_ONCE):
        chunk = buffer[: t - start]
        for low in range(0, f, _BINS_AT_ONCE):
            strip = slice(low, low + _BINS_AT_ONCE)
            chunk.real[:, strip] = pair[0, strip, start : start + len(chunk)].T
            chunk.imag[:, strip] = pair[1, strip, start : start + len(chunk)].T
        yield chunk


def _add_frames(
    channels: Iterable[Iterable[NDArray[np.complex64]]],
    shape: tuple[int, int, int],
    n_fft: int,
    hop: int,
    length: int,
) -> NDArray[np.float32]:
    """Inverse transforms and overlap-add: each channel's chunks of frames (m, f) to (channels, length).

    shape: (channels, t, f).
    """
    window = _hann(n_fft, hop)
    count, t, f = shape
    if f != n_fft // 2 + 1:
        raise ValueError(f"a spectrum of {f} bins does not come from frames of {n_fft} samples")
    overlap = n_fft // hop
    added = np.zeros((count, t + overlap - 1, hop), dtype=np.float32)
    for chunks, target in zip(channels, added, strict=True):
        start = 0
        for chunk in chunks:
            frames = np.fft.irfft(chunk, n=n_fft, axis=-1)
            frames *= window
            hops = frames.reshape(-1, overlap, hop)
            for part in range(overlap):  # a frame covers `overlap` hops: shifted adds, no loop over frames
                target[start + part : start + part + len(hops)] += hops[:, part]
            start += len(hops)
    added *= _inverse_envelope(n_fft, hop, t)
    samples = added.reshape(count, -1)[:, n_fft // 2 : n_fft // 2 + length]
    return (
        np.pad(samples, ((0, 0), (0, length - samples.shape[-1]))) if samples.shape[-1] < length else samples
    )


@lru_cache(maxsize=8)
def _hann(n_fft: int, hop: int) -> NDArray[np.float32]:
    """Periodic Hann window of n_fft samples."""
    if hop <= 0 or n_fft % hop:
        raise ValueError(f"the hop ({hop}) must divide the frame length ({n_fft})")
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
    window.flags.writeable = False
    return window


@lru_cache(maxsize=8)
def _inverse_envelope(n_fft: int, hop: int, frames: int) -> NDArray[np.float32]:
    """One over the squared windows' sum: (frames + n_fft // hop - 1, hop), zero where no frame is."""
    overlap = n_fft // hop
    squared = (_hann(n_fft, hop).astype(np.float64) ** 2).reshape(overlap, hop)
    envelope = np.zeros((frames + overlap - 1, hop))
    for part in range(overlap):
        envelope[part : part + frames] += squared[part]
    inverse = np.divide(1.0, envelope, out=np.zeros_like(envelope), where=envelope > 1e-11).astype(np.float32)
    inverse.flags.writeable = False
    return inverse
