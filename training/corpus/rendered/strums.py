"""Rule-based rhythm guitar: chord progressions, strummed, chugged or picked, and double-tracked."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.corpus.recorded.sources import Audio, Piece, Source, normalize, split_render
from training.corpus.rendered import effects
from training.corpus.rendered.midi import Track, synthesize
from training.corpus.rendered.sampler import Note, load_instrument, play

# Common chord progressions: semitones above the tonic, and whether the chord is minor
PROGRESSIONS = (
    ((0, 0), (7, 0), (9, 1), (5, 0)), ((9, 1), (5, 0), (0, 0), (7, 0)), ((0, 0), (5, 0), (7, 0), (7, 0)),
    ((0, 0), (0, 0), (5, 0), (0, 0), (7, 0), (5, 0), (0, 0), (7, 0)), ((0, 1), (8, 0), (3, 0), (10, 0)),
    ((0, 1), (10, 0), (8, 0), (7, 0)), ((0, 0), (10, 0), (5, 0), (0, 0)), ((0, 0), (9, 1), (2, 1), (7, 0)),
    ((0, 1), (3, 0), (5, 0), (8, 0)), ((0, 1), (1, 0), (0, 1), (6, 0)), ((0, 0), (4, 1), (5, 0), (5, 1)),
)  # fmt: skip
STYLES = ("power", "chug", "open", "arpeggio", "offbeat", "riff", "ballad")
LOWEST = 40  # E2, the open low string


def voice_chord(root: int, minor: int, style: str, rng: np.random.Generator) -> list[int]:
    """MIDI pitches of a chord from low to high; power chords and riffs have root, fifth and octave."""
    root = LOWEST + (root - LOWEST) % 12
    if style in ("power", "chug", "riff"):
        return [root, root + 7, root + 12][: 3 if rng.random() < 0.7 else 2]
    third = 3 if minor else 4
    shape = [0, 7, 12, 12 + third, 19, 24]
    seventh = rng.random() < 0.15
    notes = [root + s for s in shape if root + s <= 76]
    return [n - 2 if seventh and n == root + 24 else n for n in notes]


def draw_pattern(style: str, rng: np.random.Generator) -> list[tuple[float, float, float, str]]:
    """One bar of four beats: (beat, length in beats, loudness from 0 to 1, stroke)."""
    if style == "power":
        return [(i / 2, 0.5, 0.9 if i % 2 == 0 else 0.75, "down") for i in range(8)]
    if style == "chug":
        accents = set(rng.choice(8, 3, replace=False).tolist()) | {0}
        return [(i / 2, 0.5, 0.95, "down") if i in accents else (i / 2, 0.22, 0.6, "mute") for i in range(8)]
    if style == "offbeat":
        return [(b + 0.5, 0.3, 0.8, "up") for b in range(4)]
    if style == "ballad":
        return [(0, 2.0, 0.7, "down"), (2, 1.5, 0.6, "down"), (3.5, 0.5, 0.4, "up")]
    if style == "arpeggio":
        return [(i / 2, 1.5, 0.6 + 0.2 * (i == 0), "pick") for i in range(8)]
    if style == "riff":
        cells = np.sort(rng.choice(np.arange(16), int(rng.integers(5, 10)), replace=False)) / 4
        return [(float(b), 0.24, float(rng.uniform(0.6, 1)), "riff") for b in cells]
    strokes = [(0, "down"), (1, "down"), (1.5, "up"), (2.5, "up"), (3, "down"), (3.5, "up")]
    return [(b, 0.5, 0.85 if s == "down" else 0.6, s) for b, s in strokes if b == 0 or rng.random() < 0.92]


def draw_chords(
    rng: np.random.Generator, *, style: str, key: int, beat: float, bars: int
) -> list[tuple[float, float, list[int], float, str]]:
    """Chords of one performance: (start in s, length in s, pitches, loudness, stroke)."""
    progression = PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))]
    bar = draw_pattern(style, rng)
    bars_per_chord = int(rng.choice([1, 1, 2]))
    events = []
    for b in range(bars):
        step, minor = progression[b // bars_per_chord % len(progression)]
        chord = voice_chord(key + step, minor, style, rng)
        if b % 8 == 7:
            bar = draw_pattern(style, rng)
        for index, (offset, length, loudness, stroke) in enumerate(bar):
            pitches = chord
            if stroke == "up":
                pitches = chord[-4:][::-1]
            elif stroke == "mute":
                pitches = chord[:2]
            elif stroke == "pick":
                order = [0, 2, 3, 4, 3, 2, 3, 1]
                pitches = [chord[order[index % 8] % len(chord)]]
            elif stroke == "riff":
                pitches = [chord[0] + int(rng.choice([0, 0, 0, 3, 5, 7, 10, 12]))]
            events.append(((b * 4 + offset) * beat, length * beat, pitches, loudness, stroke))
    return events


def humanize(
    events: list[tuple[float, float, list[int], float, str]], rng: np.random.Generator
) -> list[Note]:
    """One take: strings are a few ms apart, timing and loudness vary."""
    notes = []
    gap = rng.uniform(0.004, 0.014)
    for start, length, pitches, loudness, stroke in events:
        delay = rng.normal(0, 0.008)
        for i, pitch in enumerate(pitches):
            velocity = int(np.clip(127 * loudness * rng.uniform(0.85, 1.1), 20, 127))
            duration = min(length, 0.09) if stroke == "mute" else length * rng.uniform(0.9, 1.02)
            notes.append(Note(max(0.0, start + delay + i * gap), max(duration, 0.05), pitch, velocity))
    return notes


def play_take(
    source: Source, notes: list[Note], program: int, rng: np.random.Generator, seconds: float
) -> Audio:
    """One mono take, (n, 1), on the source's sampled guitar or soundfont."""
    sound = source.files[0]
    if sound.endswith("index.tsv"):
        articulations = source.settings["articulations"]
        articulation = articulations[0] if program >= 26 else articulations[-1]
        guitar = load_instrument(str(Path(sound).parent), (articulation,))
        return play(notes, guitar, rng, seconds=seconds)
    audio = synthesize([Track(program, tuple(notes))], sound, seconds=seconds)
    return np.asarray(audio.mean(axis=1, keepdims=True), np.float32)


def performances(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Performances of 25 to 50 s, (n, 2), without end."""
    while True:
        style = str(rng.choice(STYLES))
        beat = 60 / rng.uniform(70 if style in ("ballad", "arpeggio") else 95, 190)
        bars = int(rng.uniform(25, 50) / (4 * beat))
        key = int(rng.integers(0, 12))
        clean = style in ("open", "arpeggio", "offbeat", "ballad") and rng.random() < 0.6
        program = int(rng.choice([24, 25, 25, 26, 27, 28] if clean else [27, 28, 29, 29, 30, 30]))
        events = draw_chords(rng, style=style, key=key, beat=beat, bars=bars)
        if style == "chug" and program >= 29 and rng.random() < 0.5:
            program = 30
        seconds = bars * 4 * beat + 1.5
        doubled = rng.random() < 0.65
        amount = 10 ** rng.uniform(0.2, 1.3)
        sides = []
        for _ in range(2 if doubled else 1):
            audio = play_take(source, humanize(events, rng), program, rng, seconds)
            if not clean:
                audio = effects.simulate_amp(audio, rng, amount=amount * rng.uniform(0.8, 1.25))
            elif rng.random() < 0.4:
                audio = effects.compress(audio, threshold_db=-18, ratio=3)
            sides.append(normalize(audio))
        if doubled:
            width = rng.uniform(0.6, 1.0)
            left, right = (1 + width) / 2, (1 - width) / 2
            stereo = np.hstack([left * sides[0] + right * sides[1], right * sides[0] + left * sides[1]])
        else:
            pan = rng.uniform(0.25, 0.75)
            stereo = sides[0] * np.array([[np.cos(pan * np.pi / 2), np.sin(pan * np.pi / 2)]], np.float32)
        audio = effects.colour(stereo.astype(np.float32), rng, wet=0.4)
        yield from split_render(audio, f"{style} program {program} {'clean' if clean else 'driven'}")
