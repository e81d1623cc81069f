"""The instruments of the demo song, synthesised with numpy alone.

Each function renders one note or hit as mono float64 (n,) at 44.1 kHz, level about 1. Filters are applied in
the frequency domain, where a recursive filter (a plucked string) is a division, and needs no loop over
samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.floating[Any]]  # (n,) or (c, n)

RATE = 44_100  # Hz


def hertz(midi: float) -> float:
    """The frequency of a MIDI note, A4 = 69 = 440 Hz."""
    return float(440.0 * 2 ** ((midi - 69) / 12))


def seconds(duration: float) -> Signal:
    """Sample times (n,) from 0 to `duration`."""
    return np.arange(round(duration * RATE)) / RATE


def _fade_out(t: Signal, duration: float) -> Signal:
    """A gain that falls from 1 to 0 in the last `duration` seconds of the times `t`."""
    return np.asarray(np.minimum(1, (t[-1] - t) / duration))


def band(frequency: Signal, low: float, high: float, steepness: int = 3) -> Signal:
    """Magnitude of a Butterworth-like band pass at each frequency (Hz)."""
    below = 1 + (low / np.maximum(frequency, 1.0)) ** (2 * steepness)
    return np.asarray(1 / np.sqrt(below * (1 + (frequency / high) ** (2 * steepness))))


def filtered(signal: Signal, low: float, high: float) -> Signal:
    """The last axis through a zero-phase band pass."""
    n = signal.shape[-1]
    size = 1 << (n - 1).bit_length()
    spectrum = np.fft.rfft(signal, size)
    return np.fft.irfft(spectrum * band(np.fft.rfftfreq(size, 1 / RATE), low, high), size)[..., :n]


def partials(frequency: float, t: Signal, highest: float) -> Iterator[tuple[int, NDArray[np.complex128]]]:
    """(k, e^(2 pi i k f t)) for each harmonic up to `highest` Hz; multiplying is far cheaper than sines."""
    turn = np.exp(2j * np.pi * frequency * t)
    phasor = np.ones_like(turn)
    for k in range(1, int(highest / frequency) + 1):
        phasor = phasor * turn
        yield k, phasor


def noise(rng: np.random.Generator, n: int, low: float, high: float) -> Signal:
    """Gaussian noise between two frequencies, RMS 1."""
    signal = filtered(rng.standard_normal(n), low, high)
    return np.asarray(signal / np.sqrt(np.mean(signal**2)))


def kick(rng: np.random.Generator) -> Signal:
    """A sine that falls from 160 to 50 Hz, and the click of the beater."""
    t = seconds(0.42)
    phase = 2 * np.pi * (50 * t + 110 * 0.026 * (1 - np.exp(-t / 0.026)))
    body = np.sin(phase) * np.exp(-t / 0.12)
    click = noise(rng, t.size, 1500, 6000) * np.exp(-t / 0.004) * 0.25
    return np.asarray(np.tanh(1.8 * (body + click)) * _fade_out(t, 0.05))


def snare(rng: np.random.Generator, brightness: float = 1.0) -> Signal:
    """Two modes of the head, which fall a little, and the rattle of the wires."""
    t = seconds(0.4)
    drop = 1 + 0.12 * np.exp(-t / 0.02)
    head = np.zeros_like(t)
    for frequency, decay in ((187, 0.07), (332, 0.045)):
        head += np.sin(2 * np.pi * np.cumsum(frequency * drop) / RATE) * np.exp(-t / decay)
    wires = noise(rng, t.size, 1100, 5000 + 6000 * brightness)
    rattle = wires * (0.35 * np.exp(-t / 0.1) + 0.6 * np.exp(-t / 0.018))
    return np.asarray(np.tanh(1.1 * (0.5 * head + 0.75 * rattle)))


def hat(rng: np.random.Generator, decay: float) -> Signal:
    """Six clashing square waves and noise above 6 kHz; `decay` 0.03 s closed, 0.2 s open."""
    t = seconds(min(8 * decay, 0.7))
    squares = np.zeros_like(t)
    for frequency in (323, 478, 581, 823, 848, 1258):
        squares += np.sign(np.sin(2 * np.pi * frequency * t + rng.uniform(0, 6)))
    metal = filtered(squares, 6800, 15000)
    sound = 0.5 * metal / np.std(metal) + 0.5 * noise(rng, t.size, 7000, 16000)
    return np.asarray(0.8 * sound * np.exp(-t / decay) * np.minimum(1, t / 0.0008))


def crash(rng: np.random.Generator) -> Signal:
    """A cloud of inharmonic partials, high ones dying first, in a wash of noise."""
    t = seconds(2.6)
    sound = 0.8 * noise(rng, t.size, 2500, 15000) * np.exp(-t / 0.55)
    sound += 0.7 * noise(rng, t.size, 6000, 17000) * np.exp(-t / 0.15)
    for frequency in rng.uniform(380, 9000, 32):
        decay = 0.9 * (1500 / (1500 + frequency)) + 0.15
        sound += 0.12 * np.sin(2 * np.pi * frequency * t + rng.uniform(0, 6)) * np.exp(-t / decay)
    return np.asarray(0.4 * sound * np.minimum(1, t / 0.003))


def tom(rng: np.random.Generator, frequency: float) -> Signal:
    """A sine that falls to `frequency` (Hz), and the stick on the skin."""
    t = seconds(0.5)
    phase = 2 * np.pi * frequency * (t + 0.35 * 0.05 * (1 - np.exp(-t / 0.05)))
    skin = noise(rng, t.size, 300, 4000) * np.exp(-t / 0.012) * 0.3
    return np.asarray(np.tanh(1.5 * (np.sin(phase) * np.exp(-t / 0.16) + skin)) * _fade_out(t, 0.05))


def bass(rng: np.random.Generator, midi: float, duration: float, velocity: float) -> Signal:
    """A plucked sawtooth whose low-pass filter closes after the attack."""
    t = seconds(duration)
    f = hertz(midi)
    cutoff = 220 + 1900 * velocity * np.exp(-t / 0.11)
    sound = np.zeros_like(t)
    for k, phasor in partials(f, t, 2800):
        rolloff = np.square(k * f / cutoff)
        sound += (phasor * np.exp(1j * rng.uniform(-0.3, 0.3))).imag / (k * np.sqrt(1 + rolloff * rolloff))
    finger = noise(rng, t.size, 500, 3500) * np.exp(-t / 0.006) * 0.12
    envelope = np.minimum(1, t / 0.004) * np.exp(-t / 1.1) * _fade_out(t, 0.03)
    return np.asarray(np.tanh(1.2 * velocity * (sound + finger) * envelope))


def guitar(rng: np.random.Generator, midi: float, duration: float, velocity: float) -> Signal:
    """A plucked string: Karplus and Strong's loop (1983) of a delay and a low pass, with a fractional delay.

    The loop is a division of spectra. It is done on a faded string, and the fade is undone at the end: else
    what rings longer than the transform would wrap around into its beginning.
    """
    t = seconds(duration)
    n = 1 << (t.size - 1).bit_length()
    fade = np.exp(-np.log(1000) / n * np.arange(n))  # to -60 dB
    frequency = np.fft.rfftfreq(n, 1 / RATE)
    turn = -2j * np.pi * np.fft.rfftfreq(n) + np.log(fade[1])  # logarithm of one sample of delay
    period = RATE / hertz(midi)
    softness = 0.45  # of the string: how much each round trip averages two samples
    averaged = (1 - softness) + softness * np.exp(turn)
    loop = 10 ** (-3 * period / RATE / 2.4) * averaged * np.exp(turn * (period - softness))
    pluck = np.zeros(n)
    pluck[: int(period)] = rng.uniform(-1, 1, int(period))
    spectrum = np.fft.rfft(pluck * fade) * (
        1 - 0.9 * np.exp(turn * 0.17 * period)
    )  # at a sixth of the string
    body = 1 + 1.2 * band(frequency, 90, 130) + 0.8 * band(frequency, 190, 250)
    spectrum *= body * band(frequency, 70, 1500 + 3500 * velocity, 1) / (1 - loop)
    sound = np.fft.irfft(spectrum, n)[: t.size] / fade[: t.size]
    return np.asarray(velocity * sound / np.std(sound[: RATE // 5]) / 3 * _fade_out(t, 0.06))


def electric_piano(midi: float, duration: float, velocity: float) -> Signal:
    """Two FM pairs: the tone bar, which mellows as it rings, and the tine's short ping."""
    t = seconds(duration)
    turn = 2 * np.pi * hertz(midi) * t
    tone = np.sin(turn + 1.4 * velocity * np.exp(-t / 0.7) * np.sin(turn))
    tine = 0.25 * np.sin(turn + 0.8 * np.sin(14 * turn)) * np.exp(-t / 0.09)
    envelope = np.minimum(1, t / 0.003) * np.exp(-t / 1.5) * _fade_out(t, 0.08)
    return np.asarray(velocity * (tone + tine) * envelope)


def pad(rng: np.random.Generator, midi: float, duration: float) -> Signal:
    """Two detuned, dark sawtooths that swell and fade."""
    t = seconds(duration)
    sound = np.zeros_like(t)
    for cents in (-6, 7):
        f = hertz(midi + cents / 100)
        for k, phasor in partials(f, t, 8.5 * f):
            sound += (phasor * np.exp(1j * rng.uniform(0, 6))).imag / k / (1 + (k * f / 1400) ** 2)
    return np.asarray(0.4 * sound * np.minimum(1, t / 0.5) * _fade_out(t, 0.4))


def reverberated(
    rng: np.random.Generator, dry: Signal, *, decay: float, wet: float, predelay: float
) -> Signal:
    """Stereo (2, n) through a room of decaying noise, different at each side; the length stays.

    decay: seconds to -60 dB; wet: energy of the room's answer over the direct sound's.
    """
    t = seconds(1.3 * decay)
    room = np.stack([filtered(rng.standard_normal(t.size), 250, 6500) for _ in range(2)])
    room *= 10 ** (-3 * t / decay)
    room *= np.sqrt(wet / np.sum(room**2, axis=1, keepdims=True))
    room = np.pad(room, ((0, 0), (round(predelay * RATE), 0)))
    size = 1 << (dry.shape[1] + room.shape[1] - 1).bit_length()
    answer = np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(room, size), size)
    return dry + answer[:, : dry.shape[1]]
