"""Recorded notes and drum hits played from note lists: nearest recording, repitched, ended with its note."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soxr

from training.corpus.recorded.sources import SAMPLE_RATE, Audio, read_audio, read_tsv, stereo

RELEASE = 0.06  # s over which a note fades after its end
HAT_CLOSED, HAT_PEDAL, HAT_OPEN = 42, 44, 46


@dataclasses.dataclass(frozen=True, order=True)
class Note:
    """One note: start and duration in s, MIDI pitch (60 = C4 = 261.6 Hz), velocity 1..127."""

    start: float
    duration: float
    pitch: int
    velocity: int


@dataclasses.dataclass(frozen=True)
class Instrument:
    """Recordings by pitch, each a list from soft to loud, (n, 1) at 44.1 kHz."""

    samples: dict[int, list[Audio]]


@dataclasses.dataclass(frozen=True)
class Kit:
    """Hits by General MIDI drum note, each a list from soft to loud (or of alternatives), (n, 2)."""

    hits: dict[int, list[Audio]]
    layered: bool  # the list is ordered by velocity


# What stands in for a piece that a kit lacks, first choice first.
STAND_INS = {
    35: (36,), 36: (35,), 37: (38,), 38: (40,), 40: (38,), 39: (38,), 41: (43, 45), 43: (41, 45), 44: (42,),
    45: (47, 41), 47: (45, 48), 48: (50, 47), 50: (48, 47), 49: (57,), 57: (49,), 55: (49, 57), 52: (57, 49),
    51: (59,), 59: (51,), 53: (51, 59), 54: (42,), 56: (53, 51), 46: (42,), 42: (44,), 70: (42,),
}  # fmt: skip


@functools.lru_cache(maxsize=8)
def load_instrument(folder: str, articulations: tuple[str, ...]) -> Instrument:
    """Read the notes of a library in one of the articulations. Raises ValueError if there are none."""
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
    """Read a drum kit's hits; snare rests (the snare wires alone) and pieces without a note are left out."""
    rows = [r for r in read_tsv(Path(folder) / "index.tsv") if r["gm_note"] and r["piece"] != "SnareRest"]
    rows.sort(key=lambda r: (int(r["gm_note"]), int(r["velocity_rank"]), r["file"]))
    hits: dict[int, list[Audio]] = {}
    for row in rows:
        hits.setdefault(int(row["gm_note"]), []).append(stereo(read_audio(f"{folder}/{row['file']}")))
    return Kit(hits, layered=any(int(r["n_ranks"]) > 1 for r in rows))


def repitch(audio: Audio, semitones: float) -> Audio:
    """Resample so that the pitch rises by `semitones` (and the length shrinks alike)."""
    if semitones == 0 or not len(audio):
        return audio
    return np.asarray(
        soxr.resample(audio, SAMPLE_RATE * 2 ** (semitones / 12), SAMPLE_RATE, quality="MQ"), np.float32
    )


def fade_out(audio: Audio, at: float, over: float) -> Audio:
    """Cut at `at` s after a linear fade of `over` s."""
    end = int((at + over) * SAMPLE_RATE)
    if end >= len(audio):
        return audio
    cut = audio[:end].copy()
    ramp = min(end, max(1, int(over * SAMPLE_RATE)))
    cut[-ramp:] *= np.linspace(1, 0, ramp, dtype=np.float32)[:, None]
    return cut


def play(
    notes: Iterable[Note], instrument: Instrument, generator: np.random.Generator, *, seconds: float
) -> Audio:
    """Play notes to (n, 1): velocity picks the layer, the nearest recording is repitched to the note."""
    out = np.zeros((int(seconds * SAMPLE_RATE), 1), np.float32)
    pitches = np.array(sorted(instrument.samples))
    cache: dict[tuple[int, int, int], Audio] = {}
    for note in sorted(notes):
        nearest = int(pitches[np.argmin(np.abs(pitches - note.pitch))])
        layers = instrument.samples[nearest]
        place = note.velocity / 127 * len(layers) + generator.uniform(-0.5, 0.5)
        layer = int(np.clip(place, 0, len(layers) - 1))
        key = (nearest, layer, note.pitch)
        if key not in cache:
            cache[key] = repitch(layers[layer], note.pitch - nearest)
        sound = fade_out(cache[key], note.duration, RELEASE) * np.float32(0.3 + 0.7 * note.velocity / 127)
        start = int(note.start * SAMPLE_RATE)
        end = min(len(out), start + len(sound))
        if 0 <= start < end:
            out[start:end] += sound[: end - start]
    return out


def play_drums(notes: Iterable[Note], kit: Kit, generator: np.random.Generator, *, seconds: float) -> Audio:
    """Play General MIDI drum notes to (n, 2); a closed or pedalled hi-hat chokes the open one.

    Notes that neither the kit nor a stand-in has are left out.
    """
    out = np.zeros((int(seconds * SAMPLE_RATE), 2), np.float32)
    ordered = sorted(notes)
    hats = [n.start for n in ordered if n.pitch in (HAT_CLOSED, HAT_PEDAL, HAT_OPEN)]
    choice = {
        p: int(generator.integers(len(h))) for p, h in kit.hits.items()
    }  # one alternative for the whole take
    for note in ordered:
        pitch = next((p for p in (note.pitch, *STAND_INS.get(note.pitch, ())) if p in kit.hits), None)
        if pitch is None:
            continue
        layers = kit.hits[pitch]
        if kit.layered:
            place = (note.velocity / 127) ** 1.2 * (len(layers) - 1) + generator.normal(0, 0.7)
            sound = layers[int(np.clip(round(place), 0, len(layers) - 1))] * np.float32(
                generator.uniform(0.9, 1.1)
            )
        else:
            sound = layers[choice[pitch]] * np.float32((note.velocity / 127) ** 1.5)
        if pitch == HAT_OPEN:
            later = [t for t in hats if t > note.start + 0.02]
            if later:
                sound = fade_out(sound, later[0] - note.start, 0.03)
        start = int(note.start * SAMPLE_RATE)
        end = min(len(out), start + len(sound))
        if 0 <= start < end:
            out[start:end] += sound[: end - start]
    return out
