"""Vocal effects: formant shift, whisper, growl, doubles, choir, harmony; tensors (c, n)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

FRAME, HOP = 2048, 512
LIFTER = 60  # cepstral samples of an envelope: 1.4 ms, shorter than the period of a voice up to 700 Hz
INTERVALS = (-12, -5, -4, 3, 4, 5, 7)  # of a harmony, in semitones


def perform(
    x: Tensor, frames: int, rng: np.random.Generator, probabilities: Mapping[str, float], noise: Tensor
) -> Tensor:
    """Apply random effects to a voice and change its tempo: (1 or 2, n) -> (1 or 2, frames).

    Args:
        x: A chunk of a voice.
        frames: Length of the result.
        rng: The only source of randomness.
        probabilities: Of formant, whisper, growl, drive, harmony, double and choir.
        noise: White noise of unit power, (>= 1, frames).
    """
    drawn = {effect for effect, probability in probabilities.items() if rng.random() < probability}
    formant = 2 ** rng.uniform(-0.3, 0.3) if "formant" in drawn else 1.0
    if drawn & {"formant", "whisper"} or x.shape[1] != frames:
        x = resynthesize(x, frames, formant=formant, noise=noise[:1] if "whisper" in drawn else None)
    if "growl" in drawn:
        x = add_growl(x, rng)
    if drawn & {"drive", "growl"}:
        x = saturate(x, rng.uniform(1, 6))
    if "harmony" in drawn:
        ratio = 2 ** (float(rng.choice(INTERVALS)) / 12)
        higher = resynthesize(x, round(frames * ratio), formant=1 / ratio)
        positions = torch.arange(frames).to(x) * ratio
        x = x + interpolate(higher, positions) * float(rng.uniform(0.3, 0.9))
    if "choir" in drawn:
        x = add_doubles(x, rng, pairs=3)
    elif "double" in drawn:
        x = add_doubles(x, rng, pairs=1)
    return x


def saturate(x: Tensor, amount: float) -> Tensor:
    """tanh of a chunk whose peak is scaled to `amount`."""
    return torch.tanh(x * (amount / x.abs().max().clamp(min=1e-6)))


def add_growl(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Modulate the amplitude irregularly, 25 to 90 times per second."""
    n = x.shape[1]
    knots = np.cumsum(rng.uniform(0.6, 1.4, n // 400 + 2)) * (rng.uniform(25, 90) * 400 / 44_100)
    cycles = torch.from_numpy(np.interp(np.arange(n) / 400, np.arange(len(knots)), knots)).to(x)
    return x * (1 - float(rng.uniform(0.4, 0.9)) * (0.5 + 0.5 * torch.cos(2 * math.pi * cycles)))


def add_doubles(x: Tensor, rng: np.random.Generator, *, pairs: int) -> Tensor:
    """Add further takes left and right, with slowly varying delay and pitch: (c, n) -> (2, n)."""
    time = torch.arange(x.shape[1]).to(x)
    copies = []
    for side in range(2 * pairs):
        delay, depth = rng.uniform(350, 1400), rng.uniform(20, 120)  # samples
        modulation = torch.sin(time * (2 * math.pi * rng.uniform(0.3, 1.5) / 44_100) + rng.uniform(0, 6.28))
        copies.append(interpolate(x, time - delay + depth * modulation)[side % x.shape[0]])
    sides = torch.stack([sum(copies[0::2], x.new_zeros(())), sum(copies[1::2], x.new_zeros(()))])
    return x + sides * (float(rng.uniform(0.4, 1.0)) / math.sqrt(pairs))


def interpolate(x: Tensor, positions: Tensor) -> Tensor:
    """(c, n) at fractional sample positions (m,), linearly; beyond its ends, the first or last sample."""
    positions = positions.clamp(0, x.shape[1] - 1)
    low = positions.long().clamp(max=x.shape[1] - 2)
    return torch.lerp(x[:, low], x[:, low + 1], positions - low)


def spectral_envelope(spectrum: Tensor) -> Tensor:
    """Smoothed log magnitude (c, f, t) of a spectrum, from the first LIFTER samples of its cepstrum."""
    cepstrum = torch.fft.irfft(spectrum.abs().clamp(min=1e-6).log(), dim=1)
    cepstrum[:, LIFTER : FRAME - LIFTER + 1] = 0
    smooth: Tensor = torch.fft.rfft(cepstrum, dim=1).real
    return smooth


def resynthesize(x: Tensor, frames: int, *, formant: float = 1.0, noise: Tensor | None = None) -> Tensor:
    """Stretch (c, n) to (c, frames) at constant pitch, with formants scaled by `formant`; whispered with `noise`.

    A phase vocoder (Flanagan and Golden, Bell System Technical Journal 45, 1966) with the same hop for synthesis as for
    analysis: the phase of a frame advances as it did between the two original frames around it.
    """
    window = torch.hann_window(FRAME).to(x)
    spectrum = torch.stft(x, FRAME, HOP, window=window, return_complex=True)
    if x.shape[1] != frames:
        count = frames // HOP + 1
        positions = torch.linspace(0, spectrum.shape[-1] - 1, count).to(x)
        low = positions.long().clamp(max=spectrum.shape[-1] - 2)
        weight = (positions - low)[None, None]
        magnitude = torch.lerp(spectrum.abs()[..., low], spectrum.abs()[..., low + 1], weight)
        advance = (spectrum[..., low + 1] * spectrum[..., low].conj()).angle()
        middle = count // 2  # keeps its original phase; the edges are padding
        phase = advance.cumsum(dim=-1) - advance
        phase = spectrum[..., low[middle], None].angle() + phase - phase[..., middle, None]
        spectrum = torch.polar(magnitude, phase)
    if formant != 1 or noise is not None:
        envelope = spectral_envelope(spectrum)
        positions = (torch.arange(envelope.shape[1]).to(x) / formant).clamp(max=envelope.shape[1] - 1)
        low = positions.long().clamp(max=envelope.shape[1] - 2)
        shifted = torch.lerp(envelope[:, low], envelope[:, low + 1], (positions - low)[None, :, None])
        if noise is None:
            spectrum = spectrum * (shifted - envelope).clamp(-2.5, 2.5).exp()
        else:
            white = torch.stft(noise[:, :frames], FRAME, HOP, window=window, return_complex=True)
            whisper = white[..., : shifted.shape[-1]] * shifted.exp()
            voice_power, power = (s.abs().square().sum(dim=1, keepdim=True) for s in (spectrum, whisper))
            spectrum = whisper * (voice_power / power.clamp(min=1e-9)).sqrt()
    return torch.istft(spectrum, FRAME, HOP, window=window, length=frames)
