"""Synthesized basses: plucked strings and synthesizers.

Sampled basses are few, and a network trained on few fails to recognize others. Here every piece of music gets an
instrument with random parameters, which returns its notes like recordings.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.rendered.sampler import RELEASE, Instrument, Note, fade_out

Samples = NDArray[np.float32]  # (n,)
Voice = Callable[[float, float, Samples], Samples]  # Hz, loudness from 0 to 1, times in s -> a note

LONGEST = 4.0  # s of a note
LAYERS = (0.35, 0.65, 0.95)  # loudness of the samples of one pitch
CONTROL = 64  # samples between filter updates
LOWEST_STRING = 41.2  # Hz, E1; the other three are a fourth apart


def build_instrument(kind: str, notes: Sequence[Note], rng: np.random.Generator) -> Instrument:
    """A random instrument of a kind (string, subtractive, fm) with the pitches of some notes."""
    voice = VOICES[kind](rng)
    samples = {}
    for pitch in sorted({note.pitch for note in notes}):
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        seconds = min(max(note.duration for note in notes if note.pitch == pitch) + 0.2, LONGEST)
        times = (np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)
        takes = [voice(hertz, loudness, times) for loudness in LAYERS]
        loudest = max(float(np.abs(take).max()) for take in takes)
        # Longer notes end with a fade instead of a click.
        samples[pitch] = [
            fade_out((take / np.float32(loudest))[:, None], seconds - 2 * RELEASE, RELEASE) for take in takes
        ]
    return Instrument(samples)


def _string(rng: np.random.Generator) -> Voice:
    """An electric bass: the modes of a stiff string with a plucking point and a pickup.

    Modes and stiffness follow Fletcher and Rossing, The Physics of Musical Instruments, sections 2.8 and 2.18; losses
    grow with the square of frequency (Valimaki et al., https://doi.org/10.1155/S1110865704310097).
    """
    pluck, pickup = (
        rng.uniform(0.06, 0.3),
        rng.uniform(0.04, 0.25),
    )  # distance from the bridge; open string: 1
    stiffness = 10 ** rng.uniform(-4.5, -3.3)
    loss, treble_loss = rng.uniform(0.3, 1.5), 10 ** rng.uniform(-6.3, -5.2)  # 1/s, s
    loss *= rng.choice([1.0, 1.0, 1.0, 6.0])  # sometimes muted by palm or foam
    dark, bright = np.sort(10 ** rng.uniform(2.5, 3.8, 2))  # Hz, of a soft and a hard stroke
    click, attack = (
        10 ** rng.uniform(-2.5, -0.8),
        rng.uniform(0.0005, 0.006),
    )  # relative to the loudest mode; s
    noise = rng.standard_normal(int(0.01 * SAMPLE_RATE)).astype(np.float32)
    noise *= np.hanning(len(noise)).astype(np.float32)

    def play(hertz: float, loudness: float, times: Samples) -> Samples:
        string = np.clip(np.floor(np.log2(hertz / LOWEST_STRING) * 12 / 5), 0, 3)
        ratio = hertz / (LOWEST_STRING * 2 ** (string * 5 / 12))  # to the open string
        modes = np.arange(1, max(int(8000 / hertz), 2))
        frequencies = hertz * modes * np.sqrt(1 + stiffness * modes**2)
        amplitudes = np.sin(np.pi * modes * min(pluck * ratio, 0.5)) / modes
        amplitudes *= np.sin(np.pi * modes * min(pickup * ratio, 0.5))
        amplitudes *= np.exp(-frequencies / (dark + (bright - dark) * loudness))
        rates = loss + treble_loss * frequencies**2
        note = np.zeros(len(times), np.float32)
        for frequency, amplitude, rate in zip(
            frequencies, amplitudes / np.abs(amplitudes).max(), rates, strict=True
        ):
            if abs(amplitude) > 1e-3 and frequency < 10_000:
                audible = times[: int(7 / rate * SAMPLE_RATE) + 1]  # until it has decayed by 60 dB
                note[: len(audible)] += np.float32(amplitude) * (
                    np.exp(np.float32(-rate) * audible) * np.sin(np.float32(2 * np.pi * frequency) * audible)
                )
        note *= 1 - np.exp(-times / np.float32(attack))
        note[: len(noise)] += noise[: len(note)] * np.float32(click * loudness)
        return note * np.float32(loudness)

    return play


def _subtractive(rng: np.random.Generator) -> Voice:
    """An analogue synthesizer: one or two detuned oscillators and a low-pass that closes during the note.

    Additive, and therefore free of aliasing: the filter is a gain per harmonic.
    """
    wave, width = str(rng.choice(["saw", "square", "triangle", "pulse"])), rng.uniform(0.1, 0.45)
    detune = 2 ** (rng.uniform(0, 12) / 1200) if rng.random() < 0.5 else 1.0
    sub = rng.uniform(0.2, 1.0) if rng.random() < 0.4 else 0.0  # a sine an octave below
    closed, opened = np.sort(10 ** rng.uniform(1.9, 3.5, 2))  # Hz, cutoff
    closing, slope, resonance = 10 ** rng.uniform(-1.6, 0.2), rng.choice([1.0, 2.0]), rng.uniform(0, 8)
    attack, decay, sustain = 10 ** rng.uniform(-3, -1.7), 10 ** rng.uniform(-0.9, 0.5), rng.uniform(0, 1)

    def play(hertz: float, loudness: float, times: Samples) -> Samples:
        control_times = times[::CONTROL]
        cutoff = closed + (opened - closed) * loudness * np.exp(-control_times / closing)
        note = np.zeros(len(times), np.float32)
        for pitch in (hertz,) if detune == 1.0 else (hertz, hertz * detune):
            fundamental = np.exp(2j * np.pi * pitch * times.astype(np.float64)).astype(np.complex64)
            harmonic = np.ones_like(fundamental)
            for number in range(1, int(6000 / pitch) + 1):
                harmonic *= fundamental
                if amplitude := _HARMONICS[wave](number, width):
                    ratio = np.square(np.float32(number * pitch) / cutoff)
                    gain = (1 + resonance * np.exp(-8 * np.square(ratio - 1))) / (1 + ratio**slope)
                    gain = np.interp(times, control_times, amplitude * gain).astype(np.float32)
                    note += gain * harmonic.imag
        if sub:
            note += np.float32(sub) * np.sin(np.float32(np.pi * hertz) * times)
        return note * _envelope(times, attack=attack, decay=decay, sustain=sustain) * np.float32(loudness)

    return play


def _envelope(times: Samples, *, attack: float, decay: float, sustain: float) -> Samples:
    """Amplitude envelope with exponential attack and decay (s) to the sustain level."""
    falling = sustain + (1 - sustain) * np.exp(-times / decay)
    return np.asarray(falling * (1 - np.exp(-times / attack)), np.float32)


_HARMONICS: dict[str, Callable[[int, float], float]] = {
    "saw": lambda number, width: 1 / number,
    "square": lambda number, width: number % 2 / number,
    "triangle": lambda number, width: (-1) ** (number // 2) * (number % 2) / number**2,
    "pulse": lambda number, width: float(np.sin(np.pi * number * width)) / number,
}


def _fm(rng: np.random.Generator) -> Voice:
    """Frequency modulation with one modulator (Chowning, JAES 21(7), 1973)."""
    ratio, feedback = float(rng.choice([0.5, 1, 1, 2, 3])), rng.uniform(0, 0.6)
    depth, settled = rng.uniform(0.5, 5), rng.uniform(0, 1.0)  # rad
    settling, decay = 10 ** rng.uniform(-1.5, 0), 10 ** rng.uniform(-0.5, 0.6)  # s
    attack, sustain = 10 ** rng.uniform(-3, -2), rng.uniform(0, 0.8)

    def play(hertz: float, loudness: float, times: Samples) -> Samples:
        phase = np.float32(2 * np.pi * hertz) * times
        index = settled + depth * loudness * np.exp(-times / settling)
        modulator = np.sin(ratio * phase + feedback * np.sin(ratio * phase))
        note = np.asarray(np.sin(phase + index * modulator), np.float32)
        return note * _envelope(times, attack=attack, decay=decay, sustain=sustain) * np.float32(loudness)

    return play


VOICES: dict[str, Callable[[np.random.Generator], Voice]] = {
    "string": _string,
    "subtractive": _subtractive,
    "fm": _fm,
}
