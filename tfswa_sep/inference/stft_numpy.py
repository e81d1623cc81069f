"""Waveform <-> complex spectrogram, in NumPy.

Equal to torch.stft and torch.istft with, by default, a periodic Hann window, center=True, pad_mode="constant" and no
normalisation. It is not in the ONNX graph because ONNX Runtime cannot run an exported inverse STFT.

Axis letters: n samples, f bins (n_fft // 2 + 1), t frames (n // hop + 1), m frames of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tfswa_sep.constants import HOP, N_FFT

WINDOWS = ("hann", "none")
_CHUNK_FRAMES = 128  # per channel: they fit into the core's cache


def stft(
    samples: NDArray[np.float32],
    *,
    n_fft: int = N_FFT,
    hop: int = HOP,
    window: str = "hann",
    centred: bool = True,
) -> NDArray[np.complex64]:
    """Short-time Fourier transform of (..., n) samples.

    Args:
        samples: (..., n).
        n_fft: Samples per frame.
        hop: Samples between frames.
        window: One of WINDOWS.
        centred: Frame i is centred on sample i * hop: n_fft // 2 zeros are added at both ends. If False, it
            begins there, and only frames inside the samples are computed.

    Returns:
        (..., f, t) complex64, a view whose memory layout is (..., t, f).

    Raises:
        ValueError: hop exceeds half of n_fft.
    """
    # Undoes norm="forward", which divides by n_fft. The default norm is four times slower: its integer factor
    # makes NumPy compute in double precision.
    scaled = window_of(n_fft, hop, window) * np.float32(n_fft)
    samples = np.asarray(samples, dtype=np.float32)
    length = samples.shape[-1]
    flat = samples.reshape(-1, length)
    side = n_fft // 2 if centred else 0
    frames = (length + 2 * side - n_fft) // hop + 1
    spectrum = np.empty((len(flat), frames, n_fft // 2 + 1), dtype=np.complex64)
    padded = np.zeros(length + 2 * side, dtype=np.float32)
    for channel, target in zip(flat, spectrum, strict=True):
        padded[side : side + length] = channel
        framed = sliding_window_view(padded, n_fft)[::hop]  # (t, n_fft), no copy
        for start in range(0, frames, _CHUNK_FRAMES):
            chunk = slice(start, start + _CHUNK_FRAMES)
            np.fft.rfft(framed[chunk] * scaled, axis=-1, norm="forward", out=target[chunk])
    return spectrum.reshape(*samples.shape[:-1], frames, n_fft // 2 + 1).swapaxes(-1, -2)


def istft(
    spectrum: NDArray[np.complex64],
    *,
    n_fft: int = N_FFT,
    hop: int = HOP,
    window: str = "hann",
    length: int,
    centred: bool = True,
) -> NDArray[np.float32]:
    """Inverse of `stft`: (..., f, t) complex to (..., length) float32 samples.

    The windowed frames' sum is divided by the sum of squared windows. Samples after the last frame are 0.

    Raises:
        ValueError: hop exceeds half of n_fft, or f is not n_fft // 2 + 1.
    """
    bins, frames = spectrum.shape[-2:]
    flat = spectrum.swapaxes(-1, -2).reshape(-1, frames, bins)
    chunks = np.array_split(flat, range(_CHUNK_FRAMES, frames, _CHUNK_FRAMES), axis=1)
    samples = np.empty((len(flat), length), np.float32)
    add_frames(
        chunks, (len(flat), bins, frames), n_fft=n_fft, hop=hop, window=window, out=samples, centred=centred
    )
    return samples.reshape(*spectrum.shape[:-2], length)


def add_frames(
    chunks: Iterable[NDArray[np.complex64]],
    shape: tuple[int, int, int],
    *,
    n_fft: int = N_FFT,
    hop: int = HOP,
    window: str = "hann",
    out: NDArray[np.float32],
    centred: bool = True,
) -> None:
    """`istft` of a spectrum that arrives in chunks of frames.

    Args:
        chunks: (channels, m, f) each; not read again once the next is taken.
        shape: (channels, f, t) of the whole spectrum.
        n_fft: Samples per frame.
        hop: Samples between frames.
        window: As in `stft`.
        out: Where the samples go, (channels, n).
        centred: As in `stft`.

    Raises:
        ValueError: hop exceeds half of n_fft, or f is not n_fft // 2 + 1.
    """
    weights = window_of(n_fft, hop, window)
    channels, f, t = shape
    if f != n_fft // 2 + 1:
        raise ValueError(f"frames of {n_fft} samples have {n_fft // 2 + 1} bins, not {f}")
    overlap = -(-n_fft // hop)
    added = np.zeros((channels, t + overlap - 1, hop), dtype=np.float32)
    start = 0
    for chunk in chunks:
        for spectra, target in zip(chunk, added, strict=True):
            frames = np.fft.irfft(spectra, n=n_fft, axis=-1)
            frames *= weights
            if n_fft % hop:
                frames = np.pad(frames, ((0, 0), (0, overlap * hop - n_fft)))
            hops = frames.reshape(-1, overlap, hop)
            for part in range(overlap):  # shifted sums instead of a loop over frames
                target[start + part : start + part + len(hops)] += hops[:, part]
        start += chunk.shape[1]
    side = n_fft // 2 if centred else 0
    inside = slice(side, side + out.shape[1])
    samples = added.reshape(channels, -1)[:, inside]
    end = samples.shape[1]
    np.multiply(samples, _inverse_envelope(n_fft, hop, t, window).reshape(-1)[inside], out=out[:, :end])
    out[:, end:] = 0


@lru_cache(maxsize=8)
def window_of(n_fft: int, hop: int, kind: str = "hann") -> NDArray[np.float32]:
    """A window of n_fft samples: periodic Hann, or ones. Raises ValueError unless frames every hop samples overlap."""
    if not 0 < 2 * hop <= n_fft:
        raise ValueError(f"a hop of {hop} samples does not suit frames of {n_fft}")
    phases = 2 * np.pi * np.arange(n_fft) / n_fft
    window = (0.5 - 0.5 * np.cos(phases) if kind == "hann" else np.ones(n_fft)).astype(np.float32)
    window.flags.writeable = False
    return window


@lru_cache(maxsize=8)
def _inverse_envelope(n_fft: int, hop: int, frames: int, kind: str) -> NDArray[np.float32]:
    """The reciprocal of the summed squared windows, (frames + hops per window - 1, hop); zero outside all frames."""
    overlap = -(-n_fft // hop)
    squared = np.zeros(overlap * hop)
    squared[:n_fft] = window_of(n_fft, hop, kind).astype(np.float64) ** 2
    envelope = np.zeros((frames + overlap - 1, hop))
    for part, row in enumerate(squared.reshape(overlap, hop)):
        envelope[part : part + frames] += row
    inverse = np.divide(1.0, envelope, out=np.zeros_like(envelope), where=envelope > 1e-11).astype(np.float32)
    inverse.flags.writeable = False
    return inverse
