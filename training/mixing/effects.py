"""Effects on chunks of training audio: tensors (c, n), float32, on any device.

The linear ones (pitch, equalizer, band limit, echo, room) are one multiplication of spectra per chunk (`Filters`).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

EQ_POINTS = (40, 120, 400, 1200, 4000, 12_000)  # Hz; gains in between are linear over log frequency
REVERB_SECONDS = 0.5  # the longest reverb and echo
BLOCK = 220  # samples per step of the limiter, 5 ms
CODEC_FRAME, CODEC_BANDS = 2048, 25


def db_to_gain(decibels: float) -> float:
    """Amplitude factor of a level in dB."""
    return float(10 ** (decibels / 20))


@functools.cache
def fft_length(n: int) -> int:
    """The smallest even number >= n without prime factors above 7: fast to transform."""
    n += n % 2
    while True:
        factor = n
        for prime in (2, 3, 5, 7):
            while factor % prime == 0:
                factor //= prime
        if factor == 1:
            return n
        n += 2


def active_rms(x: Tensor) -> Tensor:
    """RMS of the louder half of the 50 ms blocks (at 44.1 kHz), (): pauses must not lower the level of a voice."""
    count = x.shape[-1] // 2205
    if count == 0:
        return x.new_zeros(())
    blocks = x[..., : count * 2205].reshape(-1, count, 2205)
    power = blocks.square().mean(dim=(0, 2)).sort().values
    level: Tensor = power[len(power) // 2 :].mean().sqrt()
    return level


class Filters:
    """Linear effects for chunks of `length` samples."""

    def __init__(self, length: int, *, sample_rate: int, seed: int, device: torch.device) -> None:
        self.length, self.sample_rate = length, sample_rate
        self.size = fft_length(length + round(REVERB_SECONDS * sample_rate))
        self.frequencies = torch.fft.rfftfreq(self.size, 1 / sample_rate).to(device)
        log_frequencies = np.log(np.maximum(self.frequencies.cpu().numpy(), 1.0))
        basis = [np.interp(log_frequencies, np.log(EQ_POINTS), unit) for unit in np.eye(len(EQ_POINTS))]
        self._eq_basis = torch.from_numpy(np.array(basis, np.float32)).to(device)  # (points, bins)
        # A chunk that is pitched up is read from more samples: a third more at 5 semitones, see `read_size`.
        count = max(8 * sample_rate, 2 * length)
        noise = np.random.default_rng((seed, 0)).standard_normal((2, count), np.float32)
        self._noise = torch.from_numpy(noise).to(device)

    def read_size(self, ratio: float) -> tuple[int, int]:
        """How many samples to read for a chunk whose pitch is raised by `ratio`, and the length of their FFT."""
        size = fft_length(round(self.size * ratio))
        return self.length * size // self.size, size

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        """White noise of unit power, (2, n)."""
        start = int(rng.integers(self._noise.shape[1] - n))
        return self._noise[:, start : start + n]

    def equalizer(self, gains: NDArray[np.float64]) -> Tensor:
        """Response (..., bins) of gains (..., points) in dB at EQ_POINTS."""
        return torch.exp(
            torch.from_numpy(gains.astype(np.float32) * 0.1151).to(self._eq_basis) @ self._eq_basis
        )

    def low_pass(self, cutoff: float) -> Tensor:
        """Response (bins,) of a steep low-pass: 1 up to 4 % below the cutoff, 0 from 4 % above it."""
        gain: Tensor = (0.5 + (cutoff - self.frequencies) / (0.08 * cutoff)).clamp(0, 1)
        return gain

    def high_pass(self, cutoff: float) -> Tensor:
        """Magnitude (bins,) of a second-order Butterworth high-pass: -3 dB at the cutoff, 12 dB per octave."""
        ratio = (self.frequencies / cutoff) ** 4
        gain: Tensor = (ratio / (1 + ratio)).sqrt()
        return gain

    def gentle_low_pass(self, cutoff: float) -> Tensor:
        """Magnitude (bins,) of a second-order Butterworth low-pass."""
        gain: Tensor = (1 / (1 + (self.frequencies / cutoff) ** 4)).sqrt()
        return gain

    def reverb(self, rng: np.random.Generator, *, room: bool, echo: bool) -> Tensor:
        """Response (2, bins) of the direct sound with a room, an echo or both."""
        rate = self.sample_rate
        impulse = self.frequencies.new_zeros(2, round(REVERB_SECONDS * rate))
        impulse[:, 0] = 1
        if room:
            tail = int(rng.uniform(0.08, REVERB_SECONDS) * rate)  # until it has decayed by 60 dB
            noise = self.noise(tail, rng) * torch.linspace(0, -6.9, tail).to(impulse).exp()
            noise[:, : int(rng.uniform(0.001, 0.02) * rate)] = 0
            level = db_to_gain(rng.uniform(-20, -3))
            impulse[:, :tail] += noise * (level / noise.square().sum(dim=1, keepdim=True).sqrt())
        if echo:
            delay, feedback = rng.uniform(0.06, 0.24), rng.uniform(0.15, 0.5)
            for repeat in range(1, 1 + int(REVERB_SECONDS / delay)):
                impulse[:, min(int(repeat * delay * rate), impulse.shape[1] - 1)] += feedback**repeat
        response: Tensor = torch.fft.rfft(impulse, self.size)
        return response

    def apply(self, x: Tensor, size: int, response: Tensor) -> Tensor:
        """Filter and resample a chunk read for an FFT of `size`: (c, read_size) -> (c, length)."""
        spectrum = torch.fft.rfft(x, size)[..., : self.size // 2 + 1] * (self.size / size)
        response = response[..., : spectrum.shape[-1]]
        filtered: Tensor = torch.fft.irfft(spectrum * response, self.size)[..., : self.length]
        return filtered


def limiter_gain(x: Tensor, ceiling: Tensor | float, *, share: float = 1.0, smooth: int = 8) -> Tensor:
    """Gain (n,) that keeps the peaks of (2, n) below `ceiling`, looking `smooth` blocks ahead and behind.

    The minimum over a window, averaged over a window one block shorter at both ends and interpolated linearly, never
    exceeds what a block needs. With a `share` below one it compresses instead: only that share of the dB above the
    ceiling is removed, so 0.75 is a ratio of 4:1.
    """
    n = x.shape[-1]
    count = -(-n // BLOCK)
    peaks = F.pad(x.abs().amax(dim=0), (0, count * BLOCK - n)).view(count, BLOCK).amax(dim=1)
    gain = (ceiling / peaks.clamp(min=ceiling)).pow(share)[None, None]
    padded = F.pad(gain, (2 * smooth + 1, 2 * smooth + 1), mode="replicate")
    minimum = -F.max_pool1d(-padded, 2 * smooth + 3, stride=1)
    smoothed = F.avg_pool1d(minimum, 2 * smooth + 1, stride=1)
    return F.interpolate(smoothed, scale_factor=BLOCK, mode="linear", align_corners=False)[0, 0, :n]


def simulate_codec(mixture: Tensor, rng: np.random.Generator) -> Tensor:
    """Add the artefacts of a lossy codec at a low bit rate to (2, n): quantization noise, holes in the treble.

    As in MP3 and AAC, mid and side are quantized with steps that grow with the power of their band (x ** 0.75,
    ISO 11172-3), so that weak coefficients vanish. Neither entropy coding nor block switching is modelled.
    """
    window = torch.sin(torch.arange(CODEC_FRAME).to(mixture) * (np.pi / CODEC_FRAME))
    mid_side = torch.stack([mixture[0] + mixture[1], mixture[0] - mixture[1]])
    hop = CODEC_FRAME // 2
    spectrum = torch.stft(mid_side, CODEC_FRAME, hop, window=window, return_complex=True)
    band = (torch.linspace(0, 1, CODEC_FRAME // 2 + 1) ** 0.5 * (CODEC_BANDS - 1)).long().to(mixture.device)
    member = F.one_hot(band, CODEC_BANDS).to(mixture)  # (bins, bands)
    power = torch.einsum("cft,fb->cbt", spectrum.abs().square(), member)
    power = power / member.sum(dim=0)[:, None].clamp(min=1)
    noise = -rng.uniform(6, 24) + torch.linspace(0, 12, CODEC_BANDS).to(mixture)  # dB relative to the band
    step = (power.sqrt() * 10 ** (noise[:, None] / 20) * 2).clamp(min=1e-7)[:, band]
    scaled = torch.view_as_real(spectrum) / step[..., None]
    quantized = scaled.sign() * scaled.abs().pow(0.75).round().pow(4 / 3) * step[..., None]
    mid, side = torch.istft(
        torch.view_as_complex(quantized), CODEC_FRAME, hop, window=window, length=mixture.shape[-1]
    )
    return torch.stack([mid + side, mid - side]) / 2
