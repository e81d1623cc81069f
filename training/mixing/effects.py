"""Effects on chunks of training audio: tensors (c, n), float32, on any device.

What is linear is one multiplication of spectra a chunk (`Filters`): pitch, equalizer, band limit, echo, room.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

EQ_POINTS = (40, 120, 400, 1200, 4000, 12_000)  # Hz; gains between them are straight over log frequency
ROOM_SECONDS = 0.5  # longest echo and reverberation
BLOCK = 220  # samples of a limiter's step, 5 ms
CODEC_FRAME = 2048


def db(value: float) -> float:
    """The factor of a level in dB."""
    return float(10 ** (value / 20))


@functools.cache
def fast_length(n: int) -> int:
    """The next even number from n on that has no prime factor above 7: quick to transform."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def active_rms(x: Tensor) -> Tensor:
    """RMS of the louder half of blocks of 50 ms (at 44.1 kHz), (): pauses must not make a voice soft."""
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
        self.size = fast_length(length + round(ROOM_SECONDS * sample_rate))
        self.hertz = torch.fft.rfftfreq(self.size, 1 / sample_rate).to(device)
        place = np.log(np.maximum(self.hertz.cpu().numpy(), 1.0))
        lines = [np.interp(place, np.log(EQ_POINTS), unit) for unit in np.eye(len(EQ_POINTS))]
        self._lines = torch.from_numpy(np.array(lines, np.float32)).to(device)
        # A pitched chunk is read from more samples than it has: a third more at 5 semitones, see `read_size`.
        count = max(8 * sample_rate, 2 * length)
        noise = np.random.default_rng((seed, 0)).standard_normal((2, count), np.float32)
        self._noise = torch.from_numpy(noise).to(device)

    def read_size(self, ratio: float) -> tuple[int, int]:
        """Samples to read for a chunk whose pitch rises by `ratio`, and the size to transform them at."""
        size = fast_length(round(self.size * ratio))
        return self.length * size // self.size, size

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        """White noise of unit power, (2, n)."""
        start = int(rng.integers(self._noise.shape[1] - n))
        return self._noise[:, start : start + n]

    def equalizer(self, gains: NDArray[np.float64]) -> Tensor:
        """Response (..., bins) to gains (..., points) in dB at EQ_POINTS."""
        return torch.exp(torch.from_numpy(gains.astype(np.float32) * 0.1151).to(self._lines) @ self._lines)

    def low_pass(self, hertz: float) -> Tensor:
        """Response (bins,) that is 1 up to 4 % under `hertz` and 0 from 4 % above it on."""
        gain: Tensor = (0.5 + (hertz - self.hertz) / (0.08 * hertz)).clamp(0, 1)
        return gain

    def high_pass(self, hertz: float) -> Tensor:
        """Magnitude (bins,) of a Butterworth filter of second order: -3 dB at `hertz`, 12 dB an octave."""
        ratio = (self.hertz / hertz) ** 4
        gain: Tensor = (ratio / (1 + ratio)).sqrt()
        return gain

    def roll_off(self, hertz: float) -> Tensor:
        """Magnitude (bins,) of the low-pass that belongs to `high_pass`."""
        gain: Tensor = (1 / (1 + (self.hertz / hertz) ** 4)).sqrt()
        return gain

    def space(self, rng: np.random.Generator, *, room: bool, echo: bool) -> Tensor:
        """Response (2, bins) of the sound itself with, if wanted, a room and an echo."""
        rate = self.sample_rate
        impulse = self.hertz.new_zeros(2, round(ROOM_SECONDS * rate))
        impulse[:, 0] = 1
        if room:
            tail = int(rng.uniform(0.08, ROOM_SECONDS) * rate)  # to fall by 60 dB
            noise = self.noise(tail, rng) * torch.linspace(0, -6.9, tail).to(impulse).exp()
            noise[:, : int(rng.uniform(0.001, 0.02) * rate)] = 0
            impulse[:, :tail] += noise * (
                db(rng.uniform(-20, -3)) / noise.square().sum(dim=1, keepdim=True).sqrt()
            )
        if echo:
            delay, feedback = rng.uniform(0.06, 0.24), rng.uniform(0.15, 0.5)
            for repeat in range(1, 1 + int(ROOM_SECONDS / delay)):
                impulse[:, min(int(repeat * delay * rate), impulse.shape[1] - 1)] += feedback**repeat
        response: Tensor = torch.fft.rfft(impulse, self.size)
        return response

    def apply(self, x: Tensor, size: int, response: Tensor) -> Tensor:
        """(c, read_size) -> (c, length): resampled by `size` over the filters' own size, and filtered."""
        spectrum = torch.fft.rfft(x, size)[..., : self.size // 2 + 1] * (self.size / size)
        response = response[..., : spectrum.shape[-1]]
        sound: Tensor = torch.fft.irfft(spectrum * response, self.size)[..., : self.length]
        return sound


def limiter(x: Tensor, ceiling: Tensor | float, *, share: float = 1.0, smooth: int = 8) -> Tensor:
    """Gain (n,) that holds the peaks of (2, n) under `ceiling`, looking `smooth` blocks ahead and behind.

    The smallest gain of a window, averaged over a window one block shorter at both ends, and straight
    lines between blocks: at no sample is it above what its block needs. With a `share` under one it
    compresses: only that share of the dB over the ceiling is taken away, 0.75 is a ratio of 4:1.
    """
    n = x.shape[-1]
    count = -(-n // BLOCK)
    peaks = F.pad(x.abs().amax(dim=0), (0, count * BLOCK - n)).view(count, BLOCK).amax(dim=1)
    needed = (ceiling / peaks.clamp(min=ceiling)).pow(share)[None, None]
    wide = F.pad(needed, (2 * smooth + 1, 2 * smooth + 1), mode="replicate")
    least = -F.max_pool1d(-wide, 2 * smooth + 3, stride=1)
    held = F.avg_pool1d(least, 2 * smooth + 1, stride=1)
    return F.interpolate(held, scale_factor=BLOCK, mode="linear", align_corners=False)[0, 0, :n]


def codec(mixture: Tensor, rng: np.random.Generator) -> Tensor:
    """What a lossy coder at a low bit rate makes of (2, n): noise under the sound, holes in the treble.

    As in MP3 and AAC, middle and side are quantized with steps that grow with the power of their band
    (x ** 0.75, ISO 11172-3), so that weak coefficients become nothing; not a codec's bits or its look ahead.
    """
    window = torch.sin(torch.arange(CODEC_FRAME).to(mixture) * (np.pi / CODEC_FRAME))
    middle_side = torch.stack([mixture[0] + mixture[1], mixture[0] - mixture[1]])
    hop = CODEC_FRAME // 2
    spectrum = torch.stft(middle_side, CODEC_FRAME, hop, window=window, return_complex=True)
    bands = 25
    band = (torch.linspace(0, 1, CODEC_FRAME // 2 + 1) ** 0.5 * (bands - 1)).long().to(mixture.device)
    member = F.one_hot(band, bands).to(mixture)
    power = torch.einsum("cft,fb->cbt", spectrum.abs().square(), member) / member.sum(dim=0)[:, None].clamp(
        min=1
    )
    loss = -rng.uniform(6, 24) + torch.linspace(0, 12, bands).to(mixture)  # dB of noise under the band
    step = (power.sqrt() * 10 ** (loss[:, None] / 20) * 2).clamp(min=1e-7)[:, band]
    parts = torch.view_as_real(spectrum) / step[..., None]
    coded = parts.sign() * parts.abs().pow(0.75).round().pow(4 / 3) * step[..., None]
    left_right = torch.istft(
        torch.view_as_complex(coded), CODEC_FRAME, hop, window=window, length=mixture.shape[-1]
    )
    return torch.stack([left_right[0] + left_right[1], left_right[0] - left_right[1]]) / 2
