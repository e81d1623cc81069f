"""A singing voice, synthesised with numpy alone.

Each glottal pulse rings five formants (FOF synthesis: Rodet, Potard, Barriere 1984); breath is noise through
the same formants. Vowels are the alto's formants of the Csound manual's appendix, with the upper ones raised,
as pop singers do. What makes it a voice and not an organ: pitch that glides between notes, scoops into
phrases, trembles and carries a late vibrato; formants on the move; consonants before the beat; a breath
before phrases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.demo.instruments import RATE, Signal, noise

STEP = 128  # samples between two values of a control curve, 2.9 ms
RING = 1000  # samples that a formant rings after a pulse

# Formant frequencies (Hz) and levels (dB).
PHONES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "a": ((800, 1150, 2800, 3500, 4950), (0, -4, -15, -24, -31)),
    "e": ((480, 1750, 2700, 3400, 4950), (0, -13, -18, -24, -31)),
    "i": ((350, 2000, 2800, 3700, 4950), (0, -15, -17, -24, -31)),
    "o": ((450, 800, 2830, 3500, 4950), (0, -7, -17, -25, -33)),
    "u": ((330, 720, 2530, 3500, 4950), (0, -10, -24, -32, -37)),
    "@": ((540, 1450, 2650, 3500, 4950), (0, -9, -17, -25, -33)),
    "m": ((260, 1000, 2200, 3300, 4950), (-5, -28, -32, -40, -47)),
    "n": ((260, 1500, 2400, 3300, 4950), (-5, -26, -30, -40, -47)),
    "l": ((360, 1250, 2800, 3400, 4950), (-5, -18, -24, -32, -41)),
    "w": ((300, 650, 2300, 3300, 4950), (-5, -16, -30, -38, -45)),
    "d": ((240, 1700, 2600, 3300, 4950), (-14, -40, -46, -50, -53)),
}
BANDWIDTHS = np.array([75.0, 95, 125, 170, 350])  # Hz

# Unvoiced consonants: (hiss from Hz, to Hz, its seconds, its level, seconds of closure before it).
HISSES = {
    "s": (5200.0, 11000.0, 0.11, 0.20, 0.0),
    "sh": (2300.0, 7000.0, 0.12, 0.24, 0.0),
    "t": (3500.0, 9000.0, 0.035, 0.30, 0.04),
    "k": (1500.0, 4500.0, 0.035, 0.28, 0.04),
    "h": (700.0, 5000.0, 0.09, 0.08, 0.0),
}
VOICED_SECONDS = 0.085  # of a voiced consonant, before the beat


@dataclass(frozen=True)
class Note:
    """One sung syllable."""

    start: float  # seconds, where the vowel begins
    duration: float  # seconds
    midi: float
    syllable: tuple[str, ...]  # phones: consonants before the beat, then one or two vowels


def _smooth(curve: Signal, width: float) -> Signal:
    """The last axis averaged with a Hann window of `width` seconds."""
    window = np.hanning(max(3, round(width * RATE / STEP)) + 2)
    edges = [(0, 0)] * (curve.ndim - 1) + [(window.size // 2, window.size - 1 - window.size // 2)]
    padded = np.pad(curve, edges, mode="edge")
    return np.apply_along_axis(np.convolve, -1, padded, window / window.sum(), "valid")


def sing(rng: np.random.Generator, notes: list[Note], total: float, *, breathiness: float = 0.035) -> Signal:
    """Sing `notes` (in order of time) into mono (n,), n = total seconds, peak about 1."""
    n = round(total * RATE)
    times = np.arange(0, n + STEP, STEP) / RATE  # of the control curves
    pitch = np.full(times.size, float(notes[0].midi) if notes else 60.0)
    loudness: Signal = np.zeros(times.size)
    frequencies = np.tile(np.array(PHONES["@"][0], dtype=float)[:, None], times.size)
    levels = np.tile(np.array(PHONES["@"][1], dtype=float)[:, None], times.size)
    vibrato = np.zeros(times.size)
    hiss = np.zeros(n + RATE)

    def set_phone(phone: str, begin: float, end: float, gain: float) -> None:
        span = (times >= begin) & (times < end)
        frequencies[:, span] = np.array(PHONES[phone][0])[:, None]
        levels[:, span] = np.array(PHONES[phone][1])[:, None]
        loudness[span] = gain

    def add_hiss(begin: float, duration: float, low: float, high: float, gain: float) -> None:
        sound = noise(rng, round(duration * RATE), low, high) * np.hanning(round(duration * RATE)) ** 0.7
        at = max(0, round(begin * RATE))
        hiss[at : at + sound.size] += gain * sound[: hiss.size - at]

    sung_until = -1.0
    for note, following in zip(notes, [*notes[1:], None], strict=True):
        vowels = [phone for phone in note.syllable if phone in "aeiou@"]
        before = [phone for phone in note.syllable if phone not in "aeiou@"]
        end = note.start + note.duration
        is_phrase_start = note.start - sung_until > 0.3
        if is_phrase_start:
            add_hiss(note.start - 0.5, 0.28, 900, 5500, 0.035)  # breathe in
        pitch[times >= sung_until if not is_phrase_start else times >= note.start - 0.25] = note.midi
        if is_phrase_start:
            pitch[(times >= note.start - 0.25) & (times < note.start + 0.02)] -= 1.2
        gain = float(0.85 + 0.02 * (note.midi - 66) + rng.normal(0, 0.03))
        at = note.start
        for phone in reversed(before):
            if phone in HISSES:
                low, high, duration, level, closure = HISSES[phone]
                loudness[(times >= at - duration - closure) & (times < at)] = 0
                add_hiss(at - duration, duration + 0.02, low, high, level)
                at -= duration + closure
            else:
                set_phone(phone, at - VOICED_SECONDS, at, 0.75 * gain)
                if phone == "d":
                    add_hiss(at - 0.012, 0.02, 2500, 6000, 0.12)
                at -= VOICED_SECONDS
        set_phone(vowels[0], note.start, end, gain)
        if len(vowels) > 1:  # a diphthong turns late
            set_phone(vowels[1], note.start + 0.62 * note.duration, end, 0.9 * gain)
        held = np.clip((times - note.start - 0.22) / 0.35, 0, 1) * (times < end)
        vibrato = np.maximum(vibrato, held * min(1.0, note.duration / 1.0) * 0.42)
        sung_until = end
        if following is None or following.start - end > 0.3:  # a phrase dies away
            tail = (times >= end - min(0.35, note.duration / 2)) & (times < end)
            loudness[tail] *= np.linspace(1, 0.25, int(tail.sum()))

    drift = _smooth(rng.standard_normal(times.size), 0.12) * 0.35
    glide: Signal = _smooth(pitch, 0.09) + drift
    glide += _smooth(vibrato, 0.15) * np.sin(2 * np.pi * np.cumsum(5.5 + 2 * drift) * STEP / RATE)
    loudness = _smooth(loudness, 0.045)
    frequencies, levels = _smooth(frequencies, 0.07), _smooth(levels, 0.06)
    voiced = _ring_formants(rng, times, glide, loudness, frequencies, levels, n)
    breath = _formant_noise(rng, times, loudness, frequencies, levels, n)
    voiced /= max(np.max(np.abs(voiced)), 1e-9)
    return voiced + breathiness * breath + hiss[:n]


def _ring_formants(
    rng: np.random.Generator,
    times: Signal,
    pitch: Signal,
    loudness: Signal,
    frequencies: Signal,  # (formant, curve)
    levels: Signal,  # dB, (formant, curve)
    n: int,
) -> Signal:
    """Add up what each glottal pulse excites."""
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    cycles = np.concatenate([[0.0], np.cumsum(hertz)[:-1]]) * STEP / RATE
    pulses = np.interp(np.arange(int(cycles[-1])), cycles, times)
    pulses = pulses + rng.normal(0, 0.002, pulses.size) / np.interp(pulses, times, hertz)  # jitter
    gains = np.interp(pulses, times, loudness) * (1 + rng.normal(0, 0.02, pulses.size))  # shimmer
    output = np.zeros(n + RING)
    centre = np.stack([np.interp(pulses, times, curve) for curve in frequencies])
    amplitude = 10 ** (np.stack([np.interp(pulses, times, curve) for curve in levels]) / 20)
    t = np.arange(RING) / RATE
    attack = np.minimum(1, t / (np.array([2.0, 1.2, 0.7, 0.6, 0.5])[:, None] / 1000))
    ringing = (0.5 - 0.5 * np.cos(np.pi * attack)) * np.exp(-np.pi * BANDWIDTHS[:, None] * t)
    ringing *= np.minimum(1, (t[-1] - t) / 0.005)
    for index in np.flatnonzero((gains > 1e-3) & (pulses >= 0) & (pulses < n / RATE)):
        at = int(pulses[index] * RATE)
        since = t - (pulses[index] - at / RATE)
        rings = ringing * np.sin(2 * np.pi * centre[:, index, None] * since)
        output[at : at + RING] += gains[index] * (amplitude[:, index] @ rings)
    return output[:n]


def _formant_noise(
    rng: np.random.Generator, times: Signal, loudness: Signal, frequencies: Signal, levels: Signal, n: int
) -> Signal:
    """Noise through the formants' moving resonances and a little air above them, frame by frame."""
    size, hop = 1024, 256
    starts = np.arange(0, n, hop)
    window = np.sqrt(np.hanning(size + 1)[:-1])
    white = rng.standard_normal(starts[-1] + size)
    frames = np.lib.stride_tricks.sliding_window_view(white, size)[starts] * window
    bins = np.fft.rfftfreq(size, 1 / RATE)
    moments = starts / RATE
    shape: Signal = 0.05 * ((bins > 5000) & (bins < 14000)) * np.ones((starts.size, 1))
    for centre, level, width in zip(frequencies, levels, BANDWIDTHS * 2.5, strict=True):
        peak = np.interp(moments, times, centre)[:, None]
        gain = 10 ** (np.interp(moments, times, level)[:, None] / 40)  # flatter than the voiced sound
        shape = shape + gain / (1 + ((bins - peak) / width) ** 2)
    shaped = np.fft.irfft(np.fft.rfft(frames) * shape) * window * np.interp(moments, times, loudness)[:, None]
    output = np.zeros(n + size)
    for start, frame in zip(starts, shaped, strict=True):
        output[start : start + size] += frame
    return output[:n]
