"""Sampled instruments and drum kits: play notes with their nearest recordings."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soxr

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.sources import Audio, read_audio, read_tsv, stereo

RELEASE = 0.06  # s in which a note fades after its end
HAT_CLOSED, HAT_PEDAL, HAT_OPEN = 42, 44, 46


@dataclasses.dataclass(frozen=True, order=True)
class Note:
    """A note: start and duration in s, MIDI pitch (60 is C4, 261.6 Hz), velocity from 1 to 127."""

    start: float
    duration: float
    pitch: int
    velocity: int


@dataclasses.dataclass(frozen=True)
class Instrument:
    """Recordings by MIDI pitch, from soft to loud, (n, 1) at 44.1 kHz each."""

    samples: dict[int, list[Audio]]


@dataclasses.dataclass(frozen=True)
class Kit:
    """Hits by General MIDI drum note, (n, 2) each: from soft to loud if `layered`, else alternatives."""

    hits: dict[int, list[Audio]]
    layered: bool


# Replacements for drum notes that a kit lacks, best first
SUBSTITUTES = {
    35: (36,), 36: (35,), 37: (38,), 38: (40,), 40: (38,), 39: (38,), 41: (43, 45), 43: (41, 45), 44: (42,),
    45: (47, 41), 47: (45, 48), 48: (50, 47), 50: (48, 47), 49: (57,), 57: (49,), 55: (49, 57), 52: (57, 49),
    51: (59,), 59: (51,), 53: (51, 59), 54: (42,), 56: (53, 51), 46: (42,), 42: (44,), 70: (42,),
}  # fmt: skip


@functools.lru_cache(maxsize=8)
def load_instrument(folder: str, articulations: tuple[str, ...]) -> Instrument:
    """Read the notes of a library in some articulations. Raises ValueError if there are none."""
    rows = [r for r in read_tsv(Path(folder) / "index.tsv") if r["articulation"] in articulations]
    rows.sort(key=lambda r: (int(r["midi_note"]), int(r["velocity_rank"]), r["file"]))
    samples: dict[int, list[Audio]] = {}
    for row in rows:
        samples.setdefault(int(row["midi_note"]), []).append(read_audio(f"{folder}/{row['file']}")[:, :1])
    if not samples:
        raise ValueError(f"{folder} has no articulation {articulations}")
    return Instrument(samples)


@functools.lru_cache(maxsize=2)
def load_kit(folder: str) -> Kit:
    """Read a drum kit's hits, except snare rests (the snare wires alone) and pieces without a note."""
    rows = [r for r in read_tsv(Path(folder) / "index.tsv") if r["gm_note"] and r["piece"] != "SnareRest"]
    rows.sort(key=lambda r: (int(r["gm_note"]), int(r["velocity_rank"]), r["file"]))
    hits: dict[int, list[Audio]] = {}
    for row in rows:
        hits.setdefault(int(row["gm_note"]), []).append(stereo(read_audio(f"{folder}/{row['file']}")))
    return Kit(hits, layered=any(int(r["n_ranks"]) > 1 for r in rows))


def repitch(audio: Audio, semitones: float) -> Audio:
    """Raise the pitch by `semitones` by resampling, which shortens the recording."""
    if semitones == 0 or not len(audio):
        return audio
    rate = SAMPLE_RATE * 2 ** (semitones / 12)
    return np.asarray(soxr.resample(audio, rate, SAMPLE_RATE, quality="MQ"), np.float32)


def fade_out(audio: Audio, at: float, over: float) -> Audio:
    """Fade out linearly from `at` s on, within `over` s."""
    end = int((at + over) * SAMPLE_RATE)
    if end >= len(audio):
        return audio
    cut = audio[:end].copy()
    ramp = min(end, max(1, int(over * SAMPLE_RATE)))
    cut[-ramp:] *= np.linspace(1, 0, ramp, dtype=np.float32)[:, None]
    return cut


def _add(out: Audio, sound: Audio, seconds: float) -> None:
    """Mix a sound into `out` at a time."""
    start = int(seconds * SAMPLE_RATE)
    end = min(len(out), start + len(sound))
    if 0 <= start < end:
        out[start:end] += sound[: end - start]


def play(notes: Iterable[Note], instrument: Instrument, rng: np.random.Generator, *, seconds: float) -> Audio:
    """Play notes to (n, 1) with the recording nearest in pitch and velocity."""
    out = np.zeros((int(seconds * SAMPLE_RATE), 1), np.float32)
    pitches = np.array(sorted(instrument.samples))
    cache: dict[tuple[int, int, int], Audio] = {}
    for note in sorted(notes):
        nearest = int(pitches[np.argmin(np.abs(pitches - note.pitch))])
        layers = instrument.samples[nearest]
        position = note.velocity / 127 * len(layers) + rng.uniform(-0.5, 0.5)
        layer = int(np.clip(position, 0, len(layers) - 1))
        key = (nearest, layer, note.pitch)
        if key not in cache:
            cache[key] = repitch(layers[layer], note.pitch - nearest)
        sound = fade_out(cache[key], note.duration, RELEASE) * np.float32(0.3 + 0.7 * note.velocity / 127)
        _add(out, sound, note.start)
    return out


def play_drums(notes: Iterable[Note], kit: Kit, rng: np.random.Generator, *, seconds: float) -> Audio:
    """Play General MIDI drum notes to (n, 2); a closed or pedalled hi-hat chokes the open one.

    Notes without a hit or a substitute are ignored.
    """
    out = np.zeros((int(seconds * SAMPLE_RATE), 2), np.float32)
    ordered = sorted(notes)
    hats = [n.start for n in ordered if n.pitch in (HAT_CLOSED, HAT_PEDAL, HAT_OPEN)]
    alternatives = {pitch: int(rng.integers(len(hits))) for pitch, hits in kit.hits.items()}  # for all notes
    for note in ordered:
        pitch = next((p for p in (note.pitch, *SUBSTITUTES.get(note.pitch, ())) if p in kit.hits), None)
        if pitch is None:
            continue
        layers = kit.hits[pitch]
        if kit.layered:
            position = (note.velocity / 127) ** 1.2 * (len(layers) - 1) + rng.normal(0, 0.7)
            layer = int(np.clip(round(position), 0, len(layers) - 1))
            sound = layers[layer] * np.float32(rng.uniform(0.9, 1.1))
        else:
            sound = layers[alternatives[pitch]] * np.float32((note.velocity / 127) ** 1.5)
        if pitch == HAT_OPEN:
            later = [t for t in hats if t > note.start + 0.02]
            if later:
                sound = fade_out(sound, later[0] - note.start, 0.03)
        _add(out, sound, note.start)
    return out
