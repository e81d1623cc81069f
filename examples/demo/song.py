"""The demo song: eight bars that this code composes, plays and sings; nothing in it was recorded.

    python -m examples.demo.song

writes `demo.ogg`, the mixture, and its true stems `stems/<stem>.ogg` beside this file. The same seed gives the
same samples; the Ogg files differ from run to run by the random serial number that the encoder gives each
stream.

D major, 96 beats a minute, 4/4. Four bars of verse and four of a refrain with a second voice:

    bar     1    2    3    4  | 5    6    7      8
    chord   D    A    Bm   G  | D    A    G  A   D
    drums   groove      fill  | crash        fill  crash, then silence
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile

from examples.demo import instruments as play
from examples.demo.instruments import RATE, Signal
from examples.demo.voice import Note, sing

FOLDER = Path(__file__).parent
SEED = 2
BEATS = 32  # the whole song
BEAT = 60 / 96  # seconds
PEAK = 0.8  # of full scale, the mixture's
OGG_LEVEL = 0.55  # soundfile's compression level: 0 large and best, 1 small and worst

# First beat, notes of the guitar (low to high), root of the bass (MIDI).
CHORDS = (
    (0, (50, 57, 62, 66, 69), 38),
    (4, (45, 52, 57, 61, 64, 69), 33),
    (8, (47, 54, 59, 62, 66), 35),
    (12, (43, 50, 55, 59, 67), 31),
    (16, (50, 57, 62, 66, 69), 38),
    (20, (45, 52, 57, 61, 64, 69), 33),
    (24, (43, 50, 55, 59, 67), 31),
    (26, (45, 52, 57, 61, 64, 69), 33),
    (28, (50, 57, 62, 66, 69, 74), 38),
)

# Beat in the chord, direction, strength.
STRUMS = ((0.0, "down", 1.0), (1.0, "down", 0.7), (1.5, "up", 0.5), (2.5, "up", 0.6), (3.0, "down", 0.75))

# Beat, length in beats, MIDI note, phones: "See the silver moon is low, let the tide take us slow ..."
VERSE = (
    (3.5, 0.5, 69, "s i"), (4, 0.5, 69, "d @"), (4.5, 1, 73, "s i l"), (5.5, 0.5, 71, "w @"),
    (6, 1.45, 69, "m u"), (7.5, 0.5, 66, "i"), (8, 1.9, 66, "l o u"), (10.5, 0.5, 66, "l e"),
    (11, 0.5, 69, "d @"), (11.5, 1.4, 71, "t a i"), (13, 0.5, 69, "t e i"), (13.5, 0.5, 67, "k @"),
    (14, 1.3, 67, "s l o u"), (15.5, 0.5, 69, "n @"),
)  # fmt: skip
REFRAIN = (
    (16, 0.95, 74, "sh a"), (17, 0.5, 73, "l a"), (17.5, 1, 69, "l a"), (18.5, 0.5, 71, "n a"),
    (19, 0.9, 69, "n o u"), (20, 0.95, 73, "sh a"), (21, 0.5, 71, "l a"), (21.5, 0.9, 69, "l o u"),
    (22.5, 0.5, 69, "t e i"), (23, 0.5, 71, "k m i"), (23.5, 0.5, 73, "h o"), (24, 1.4, 71, "m o u"),
    (25.5, 0.5, 71, "t u"), (26, 1, 69, "d @"), (27, 0.5, 71, "m o"), (27.5, 0.5, 73, "n i"),
    (28, 3.1, 74, "l a i"),
)  # fmt: skip
SECOND_VOICE = {74: 69, 73: 69, 71: 67, 69: 66}  # the note under each note of the refrain


class _Track:
    """Stereo samples (2, n) that notes are put onto; what starts or rings after the end is cut off."""

    def __init__(self, beats: float) -> None:
        self.samples: Signal = np.zeros((2, round(beats * BEAT * RATE)))

    def add(
        self, beat: float, sound: Signal, *, gain: float = 1.0, pan: float = 0.0, late: float = 0.0
    ) -> None:
        """Put a mono sound at a beat (and `late` seconds), pan -1 left to 1 right at constant power."""
        at = max(0, round((beat * BEAT + late) * RATE))
        length = min(sound.size, self.samples.shape[1] - at)
        if length <= 0:
            return
        angle = (pan + 1) * np.pi / 4
        sides = np.array([[np.cos(angle)], [np.sin(angle)]]) * np.sqrt(2)
        self.samples[:, at : at + length] += gain * sides * sound[:length]


def render(*, seed: int = SEED, beats: float = BEATS) -> dict[str, Signal]:
    """The stems as {name: float64 (2, n) at 44.1 kHz}; their sum is the mixture, whose peak is PEAK.

    beats: how much of the song to render, from its beginning, BEATS at most.
    """
    # One generator a stem: a change to one instrument leaves the others as they are.
    rngs = [np.random.default_rng([seed, number]) for number in range(4)]
    stems = {
        "vocals": 0.75 * _vocals(rngs[0], beats),
        "drums": 0.6 * _drums(rngs[1], beats),
        "bass": 0.34 * _bass(rngs[2], beats),
        "other": 1.5 * _chords(rngs[3], beats),
    }
    n = stems["vocals"].shape[1]
    fade = np.minimum(1, (n - 1 - np.arange(n)) / (0.5 * RATE))  # the last half second
    scale = PEAK / np.max(np.abs(sum(stems.values()) * fade))
    return {name: stem * fade * scale for name, stem in stems.items()}


def write(stems: dict[str, Signal], folder: Path) -> list[Path]:
    """Write `folder/demo.ogg` and `folder/stems/<stem>.ogg`, creating the folders; returns the files."""
    (folder / "stems").mkdir(parents=True, exist_ok=True)
    files = {folder / "demo.ogg": np.asarray(sum(stems.values()))}
    files |= {folder / "stems" / f"{name}.ogg": stem for name, stem in stems.items()}
    for path, samples in files.items():
        soundfile.write(path, samples.T, RATE, format="OGG", subtype="VORBIS", compression_level=OGG_LEVEL)
    return list(files)


def _vocals(rng: np.random.Generator, beats: float) -> Signal:
    total = beats * BEAT

    def notes(line: tuple[tuple[float, float, int, str], ...], delay: float) -> list[Note]:
        sung = [event for event in line if event[0] < beats]
        return [
            Note(
                beat * BEAT + delay + rng.normal(0, 0.008), 0.98 * length * BEAT, midi, tuple(phones.split())
            )
            for beat, length, midi, phones in sung
        ]

    below = tuple((beat, length, SECOND_VOICE[midi], phones) for beat, length, midi, phones in REFRAIN)
    lead = sing(rng, notes(VERSE + REFRAIN, 0.01), total)
    second = sing(rng, notes(below, 0.025), total, breathiness=0.05) if beats > 15.5 else np.zeros_like(lead)
    track = _Track(beats)
    track.add(0, lead)
    track.add(0, second, gain=0.38, pan=-0.5)
    track.add(0, second, gain=0.30, pan=0.6, late=0.019)  # doubled
    return play.reverberated(rng, track.samples, decay=1.4, wet=0.06, predelay=0.03)


def _drums(rng: np.random.Generator, beats: float) -> Signal:
    track = _Track(beats)

    def hit(beat: float, sound: Signal, gain: float, pan: float = 0.0) -> None:
        track.add(beat, sound, gain=gain * (1 + rng.normal(0, 0.05)), pan=pan, late=rng.normal(0, 0.004))

    for bar in range(7):
        refrain, filled = bar >= 4, bar in (3, 6)
        kicks = (0, 1.75, 2.5) if refrain else (0, 2, 2.5)
        for beat in kicks:
            hit(4 * bar + beat, play.kick(rng), 1.0 if beat == 0 else 0.85)
        for beat in (1,) if filled else (1, 3):
            hit(4 * bar + beat, play.snare(rng), 0.9)
        if not filled:
            hit(4 * bar + 2.25, play.snare(rng, 0.3), 0.18)  # ghost note
        steps = np.arange(0, 2.75 if filled else 4, 0.25 if refrain else 0.5)
        for beat in steps:
            opened = beat == 3.5
            accent = 0.34 if beat % 1 == 0 else 0.24 if beat % 0.5 == 0 else 0.14
            hit(4 * bar + float(beat), play.hat(rng, 0.2 if opened else 0.032), accent, 0.25)
    for beat, frequency in ((14.75, 190), (15, 190), (15.25, 140), (15.5, 140), (15.75, 98)):
        hit(beat, play.tom(rng, frequency), 0.8, (frequency - 140) / -80)
    for step, beat in enumerate(np.arange(26.75, 28, 0.25)):
        hit(float(beat), play.snare(rng, 0.7), 0.4 + 0.12 * step)
    for beat, pan in ((16.0, -0.4), (28.0, 0.35)):
        hit(beat, play.crash(rng), 0.42, pan)
        hit(beat, play.kick(rng), 1.0)
    return play.reverberated(rng, track.samples, decay=0.5, wet=0.03, predelay=0.008)


def _bass(rng: np.random.Generator, beats: float) -> Signal:
    track = _Track(beats)
    ends = [*(chord[0] for chord in CHORDS[1:]), BEATS]
    for (start, _, root), end, (_, _, next_root) in zip(CHORDS, ends, (*CHORDS[1:], CHORDS[-1]), strict=True):
        if start == 28:
            line = [(0.0, 3.6, root)]
        elif end - start == 2:
            line = [(0.0, 0.7, root), (0.75, 0.5, root), (1.5, 0.5, root + 12)]
        else:
            approach = next_root + (1 if next_root < root else -1) * 2
            line = [(0.0, 0.9, root), (1.5, 0.45, root), (2.0, 0.5, root + 7), (2.5, 0.9, root)]
            line.append((3.5, 0.5, approach))
        for beat, length, midi in line:
            if start + beat < beats:
                velocity = float(np.clip(rng.normal(0.85 if beat else 1.0, 0.05), 0.5, 1.1))
                sound = play.bass(rng, midi, length * BEAT, velocity)
                track.add(start + beat, sound, late=rng.normal(0, 0.004))
    return track.samples


def _chords(rng: np.random.Generator, beats: float) -> Signal:
    """Strummed guitar on the left, electric piano on the right, a pad behind the refrain."""
    track, guitar = _Track(beats), _Track(beats)
    ends = [*(chord[0] for chord in CHORDS[1:]), BEATS]
    for (start, strings, _), end in zip(CHORDS, ends, strict=True):
        if start >= beats:
            break
        strums = [strum for strum in STRUMS if strum[0] < end - start][: 1 if start == 28 else None]
        stops = [*(strum[0] for strum in strums[1:]), float(end - start)]
        for (beat, stroke, strength), stop in zip(strums, stops, strict=True):
            played = strings if stroke == "down" else strings[:1:-1]
            for order, midi in enumerate(played):
                velocity = strength * (1 + rng.normal(0, 0.08))
                sound = play.guitar(rng, midi, (stop - beat) * BEAT + 0.05, velocity)
                late = order * 0.011 + rng.normal(0, 0.003)
                guitar.add(start + beat, sound, gain=0.3, pan=-0.55, late=late)
        voicing = [midi + 12 if midi < 55 else midi for midi in strings[1:5]]
        for beat, length in ((0.0, 1.4), (1.5, min(2.4, end - start - 1.5))) if start < 28 else ((0.0, 3.8),):
            for midi in voicing:
                sound = play.electric_piano(midi, length * BEAT, 0.7 + rng.normal(0, 0.04))
                track.add(start + beat, sound, gain=0.10, pan=0.5, late=rng.normal(0.004, 0.003))
        if start >= 16:
            for number, midi in enumerate(voicing[:3]):
                sound = play.pad(rng, midi + 12, (end - start) * BEAT + 0.3)
                track.add(start, sound, gain=0.05, pan=(-0.8, 0.1, 0.8)[number])
    track.samples += 0.2 * np.tanh(guitar.samples / 0.2)  # evens out the strokes
    return play.reverberated(rng, track.samples, decay=1.1, wet=0.04, predelay=0.015)


def main() -> None:
    """Parse the options, render and write."""
    parser = argparse.ArgumentParser(description="Render the demo song and its stems as Ogg files.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write into")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed is another performance")
    options = parser.parse_args()
    files = write(render(seed=options.seed), options.out)
    size = sum(path.stat().st_size for path in files)
    print(f"{options.out}: {', '.join(path.name for path in files)}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
