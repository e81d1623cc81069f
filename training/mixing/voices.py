"""One voice made into many: other formants, whisper, growl, doubles, choir, harmony; tensors (c, n)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

FRAME, HOP = 2048, 512
LIFTER = 60  # samples of cepstrum that make an envelope: 1.4 ms, under the period of a voice up to 700 Hz
INTERVALS = (-12, -5, -4, 3, 4, 5, 7)  # of a second voice, in semitones


def perform(
    x: Tensor, frames: int, rng: np.random.Generator, chances: Mapping[str, float], noise: Tensor
) -> Tensor:
    """(1 or 2, m) -> (1 or 2, frames): a chunk that is sung at m / frames of its tempo, in a random manner.

    `chances` are probabilities of formant, whisper, growl, drive, harmony, double and choir;
    `noise` is white noise of unit power, (>= 1, frames).
    """
    drawn = {manner for manner, chance in chances.items() if rng.random() < chance}
    formant = 2 ** rng.uniform(-0.3, 0.3) if "formant" in drawn else 1.0
    if drawn & {"formant", "whisper"} or x.shape[1] != frames:
        x = resynthesize(x, frames, formant=formant, noise=noise[:1] if "whisper" in drawn else None)
    if "growl" in drawn:
        x = growl(x, rng)
    if drawn & {"drive", "growl"}:
        x = drive(x, rng.uniform(1, 6))
    if "harmony" in drawn:
        ratio = 2 ** (float(rng.choice(INTERVALS)) / 12)
        higher = resynthesize(x, round(frames * ratio), formant=1 / ratio)
        steps = torch.arange(frames).to(x) * ratio
        x = x + read_at(higher, steps) * float(rng.uniform(0.3, 0.9))
    if "choir" in drawn:
        x = doubled(x, rng, pairs=3)
    elif "double" in drawn:
        x = doubled(x, rng, pairs=1)
    return x


def drive(x: Tensor, amount: float) -> Tensor:
    """tanh of a chunk whose peak is brought to `amount`."""
    return torch.tanh(x * (amount / x.abs().max().clamp(min=1e-6)))


def growl(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Roughness: a loudness that wavers, irregularly, 25 to 90 times a second."""
    n = x.shape[1]
    knots = np.cumsum(rng.uniform(0.6, 1.4, n // 400 + 2)) * (rng.uniform(25, 90) * 400 / 44_100)
    turns = torch.from_numpy(np.interp(np.arange(n) / 400, np.arange(len(knots)), knots)).to(x)
    return x * (1 - float(rng.uniform(0.4, 0.9)) * (0.5 + 0.5 * torch.cos(2 * math.pi * turns)))


def doubled(x: Tensor, rng: np.random.Generator, *, pairs: int) -> Tensor:
    """(c, n) -> (2, n): further takes left and right, some ms late and a few cents off, ever changing."""
    time = torch.arange(x.shape[1]).to(x)
    copies = []
    for side in range(2 * pairs):
        delay, depth = rng.uniform(350, 1400), rng.uniform(20, 120)  # samples
        waver = torch.sin(time * (2 * math.pi * rng.uniform(0.3, 1.5) / 44_100) + rng.uniform(0, 6.28))
        copies.append(read_at(x, time - delay + depth * waver)[side % x.shape[0]])
    sides = torch.stack([sum(copies[0::2], x.new_zeros(())), sum(copies[1::2], x.new_zeros(()))])
    return x + sides * (float(rng.uniform(0.4, 1.0)) / math.sqrt(pairs))


def read_at(x: Tensor, place: Tensor) -> Tensor:
    """(c, n) at fractional sample positions (m,), linear between samples; outside of it the nearest one."""
    place = place.clamp(0, x.shape[1] - 1)
    low = place.long().clamp(max=x.shape[1] - 2)
    return torch.lerp(x[:, low], x[:, low + 1], place - low)


def envelope(spectrum: Tensor) -> Tensor:
    """Smooth log magnitude (c, f, t) of a spectrum: the first LIFTER samples of its cepstrum."""
    cepstrum = torch.fft.irfft(spectrum.abs().clamp(min=1e-6).log(), dim=1)
    cepstrum[:, LIFTER : FRAME - LIFTER + 1] = 0
    smooth: Tensor = torch.fft.rfft(cepstrum, dim=1).real
    return smooth


def resynthesize(x: Tensor, frames: int, *, formant: float = 1.0, noise: Tensor | None = None) -> Tensor:
    """(c, n) -> (c, frames) at the same pitch, the formants times `formant`; with `noise` whispered.

    A phase vocoder (Flanagan and Golden, Bell System Technical Journal 45, 1966) with the hop of the
    analysis, so that a frame's phase grows by what it grew between the two frames it lies between.
    """
    window = torch.hann_window(FRAME).to(x)
    spectrum = torch.stft(x, FRAME, HOP, window=window, return_complex=True)
    if x.shape[1] != frames:
        wanted = frames // HOP + 1
        place = torch.linspace(0, spectrum.shape[-1] - 1, wanted).to(x)
        low = place.long().clamp(max=spectrum.shape[-1] - 2)
        size = torch.lerp(spectrum.abs()[..., low], spectrum.abs()[..., low + 1], (place - low)[None, None])
        growth = (spectrum[..., low + 1] * spectrum[..., low].conj()).angle()
        middle = wanted // 2  # where the phases are the recorded ones: at the edges lies padding
        turned = growth.cumsum(dim=-1) - growth
        phase = spectrum[..., low[middle], None].angle() + turned - turned[..., middle, None]
        spectrum = torch.polar(size, phase)
    if formant != 1 or noise is not None:
        shape = envelope(spectrum)
        place = (torch.arange(shape.shape[1]).to(x) / formant).clamp(max=shape.shape[1] - 1)
        low = place.long().clamp(max=shape.shape[1] - 2)
        moved = torch.lerp(shape[:, low], shape[:, low + 1], (place - low)[None, :, None])
        if noise is None:
            spectrum = spectrum * (moved - shape).clamp(-2.5, 2.5).exp()
        else:
            white = torch.stft(noise[:, :frames], FRAME, HOP, window=window, return_complex=True)
            whispered = white[..., : moved.shape[-1]] * moved.exp()
            power = (s.abs().square().sum(dim=1, keepdim=True) for s in (spectrum, whispered))
            spectrum = whispered * (next(power) / next(power).clamp(min=1e-9)).sqrt()
    return torch.istft(spectrum, FRAME, HOP, window=window, length=frames)
