"""Waveform <-> complex spectrogram, in NumPy.

Equal to torch.stft and torch.istft with a periodic Hann window, center=True, pad_mode="constant" and no
normalisation. It lives outside the ONNX graph because ONNX Runtime refuses an exported inverse STFT.

Axis letters: n samples, f bins (n_fft // 2 + 1), t frames (n // hop + 1), m some frames of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tfswa_sep.constants import HOP, N_FFT

_FRAMES_AT_ONCE = 128  # of a channel: they stay in the core's own cache


def stft(samples: NDArray[np.float32], *, n_fft: int = N_FFT, hop: int = HOP) -> NDArray[np.complex64]:
    """Short-time Fourier transform of (..., n) samples.

    Returns (..., f, t) complex64, a view whose memory is (..., t, f). The ends are padded by n_fft // 2
    zeros, so that frame i is centred on sample i * hop.
    Raises ValueError if hop does not divide n_fft.
    """
    # Undoes "forward", which divides by n_fft: the plain norm makes NumPy compute in double precision, which
    # takes four times as long (its factor is the integer 1, and NumPy promotes).
    scaled = _hann(n_fft, hop) * np.float32(n_fft)
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
            np.fft.rfft(framed[chunk] * scaled, axis=-1, norm="forward", out=target[chunk])
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
    chunks = np.array_split(flat, range(_FRAMES_AT_ONCE, frames, _FRAMES_AT_ONCE), axis=1)
    samples = np.empty((len(flat), length), np.float32)
    add_frames(chunks, (len(flat), bins, frames), n_fft=n_fft, hop=hop, out=samples)
    return samples.reshape(*spectrum.shape[:-2], length)


def add_frames(
    chunks: Iterable[NDArray[np.complex64]],
    shape: tuple[int, int, int],
    *,
    n_fft: int = N_FFT,
    hop: int = HOP,
    out: NDArray[np.float32],
) -> None:
    """`istft` of a spectrum that comes as chunks of frames: (channels, m, f) each, into `out` (channels, n).

    shape: (channels, f, t) of the whole. A chunk is used up before the next one is asked for.
    """
    window = _hann(n_fft, hop)
    channels, f, t = shape
    if f != n_fft // 2 + 1:
        raise ValueError(f"a spectrum of {f} bins does not come from frames of {n_fft} samples")
    overlap = n_fft // hop
    added = np.zeros((channels, t + overlap - 1, hop), dtype=np.float32)
    start = 0
    for chunk in chunks:
        for spectra, target in zip(chunk, added, strict=True):
            frames = np.fft.irfft(spectra, n=n_fft, axis=-1)
            frames *= window
            hops = frames.reshape(-1, overlap, hop)
            for part in range(overlap):  # a frame covers `overlap` hops: shifted adds, no loop over frames
                target[start + part : start + part + len(hops)] += hops[:, part]
        start += chunk.shape[1]
    inside = slice(n_fft // 2, n_fft // 2 + out.shape[1])
    samples = added.reshape(channels, -1)[:, inside]
    end = samples.shape[1]
    np.multiply(samples, _inverse_envelope(n_fft, hop, t).reshape(-1)[inside], out=out[:, :end])
    out[:, end:] = 0


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
