"""MIDI to stems: drums, bass and others, through soundfonts and sampled instruments, with studio effects."""

import dataclasses
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from training.corpus.recorded.sources import (
    SAMPLE_RATE,
    Audio,
    Piece,
    Source,
    levelled,
    normalise,
    read_tsv,
    stereo,
)
from training.corpus.rendered import effects, strums
from training.corpus.rendered import synth_basses as made_basses
from training.corpus.rendered.hydrogen import load_hydrogen
from training.corpus.rendered.midi import Track, clip_tracks, read_tracks, synthesize, transpose
from training.corpus.rendered.sampler import Note, load_instrument, load_kit, play, play_drums

ROLAND_TO_GM = {
    22: 42,
    26: 46,
    58: 43,
    40: 38,
}  # hi-hat edges, floor tom rim, snare rim of the Groove MIDI pads
BASS_PROGRAMS = range(32, 40)
GUITAR_PROGRAMS = range(24, 32)
# Programs that may stand in for each other, by General MIDI family; electric guitars are listed on their own.
FAMILIES = (
    (0, 1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11, 12, 13, 14), (16, 17, 18, 19, 20, 21, 22),
    (24, 25, 26, 27, 28, 29, 30),
    (40, 41, 42, 44, 45, 48, 49, 50, 51), (46, 104, 105, 106, 107), (56, 57, 58, 59, 60, 61, 62, 63),
    (64, 65, 66, 67, 68, 69, 70, 71), (72, 73, 74, 75, 79), (80, 81, 82, 83, 84, 87),
    (88, 89, 90, 92, 93, 94, 95),
)  # fmt: skip
LONGEST = 150.0  # s taken from one MIDI file
STEM_LEVELS = {"drums": -20.0, "bass": -22.0, "other": -21.0}  # dBFS, of a rendered song's


def spread(names: list[str], generator: np.random.Generator) -> list[str]:
    """Shuffled so that the groups (the first part of each path: a drummer) take turns."""
    groups: dict[str, list[str]] = {}
    for name in generator.permutation(sorted(names)):
        groups.setdefault(str(name).split("/")[0], []).append(str(name))
    longest = max(map(len, groups.values()), default=0)
    return [g[i] for i in range(longest) for g in groups.values() if i < len(g)]


def members(table: str, archive: str) -> dict[str, tuple[str, float]]:
    """Name in the table -> (member of the zip, playing time in s)."""
    rows = read_tsv(Path(table))
    with zipfile.ZipFile(archive) as z:
        inside = z.namelist()
    by_tail = {name.split("/", 1)[-1]: name for name in inside} | {name: name for name in inside}
    return {r["file"]: (by_tail[r["file"]], float(r["seconds"])) for r in rows if r["file"] in by_tail}


def minutes_of(source: Source, found: Iterator[Piece]) -> Iterator[Piece]:
    """Stop after settings["minutes"]."""
    left = source.settings["minutes"] * 60 * SAMPLE_RATE
    for piece in found:
        yield piece
        left -= len(piece.audio)
        if left <= 0:
            return


def drums(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Drum takes (settings["midi"]: groove or freedoom) through a sampled kit or a soundfont's presets."""
    return minutes_of(source, _drums(source, rng))


def _drums(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    table, archive = source.files[:2]
    index = members(table, archive)
    shortest = 20 if source.settings["midi"] == "groove" else 30
    for name in spread([n for n, (_, s) in index.items() if s >= shortest], rng):
        member, length = index[name]
        tracks = [t for t in read_tracks(archive, member) if t.drums]
        seconds = min(length, 120.0)
        tracks = clip_tracks(tracks, start=0.0, seconds=seconds)
        if not tracks or len(tracks[0].notes) < 20:
            continue
        audio = _play_kit(tracks[0].notes, source, rng, seconds=seconds + 1.5)
        yield from levelled(audio, name)


def _play_kit(notes: Sequence[Note], source: Source, rng: np.random.Generator, *, seconds: float) -> Audio:
    """Drum notes through the source's kit, or one of its presets, and some studio effects."""
    sound = source.files[2]
    moved = tuple(Note(n.start, n.duration, ROLAND_TO_GM.get(n.pitch, n.pitch), n.velocity) for n in notes)
    if sound.endswith(("index.tsv", "drumkit.xml")):
        kit = load_kit(str(Path(sound).parent)) if sound.endswith(".tsv") else load_hydrogen(sound)
        audio = play_drums(moved, kit, rng, seconds=seconds)
    else:
        preset = int(rng.choice(source.settings["presets"]))
        track = Track(preset, moved, source.settings.get("bank128", True))
        audio = synthesize([track], sound, seconds=seconds)
    if rng.random() < 0.4:
        audio = effects.compress(
            audio, threshold_db=rng.uniform(-24, -10), ratio=rng.uniform(2, 6), release=0.1
        )
    if rng.random() < 0.25:
        audio = effects.drive(audio, rng.uniform(0.5, 2.0))
    return effects.colour(audio, rng)


def bass_line(tracks: list[Track]) -> tuple[Note, ...]:
    """The bass track, else the lowest melodic one, by octaves moved to where a bass plays; may be empty."""
    melodic = [t for t in tracks if not t.drums and t.program < 112 and len(t.notes) >= 30]
    if not melodic:
        return ()
    basses = [t for t in melodic if t.program in BASS_PROGRAMS]
    chosen = max(basses, key=lambda t: len(t.notes)) if basses else None
    if chosen is None:
        chosen = min(melodic, key=lambda t: float(np.mean([n.pitch for n in t.notes])))
    centre = float(np.median([n.pitch for n in chosen.notes]))
    octaves = round((36 - centre) / 12)
    return transpose(chosen.notes, 12 * octaves)


def bass(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Bass lines of the Freedoom music through a sampled, a computed or a soundfont's bass; (n, 1)."""
    return minutes_of(source, _bass(source, rng))


def _bass(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    table, archive = source.files[:2]
    for name, (member, length) in (
        (n, members(table, archive)[n]) for n in spread(list(members(table, archive)), rng)
    ):
        window = min(length, LONGEST)
        tracks = clip_tracks(
            read_tracks(archive, member), start=rng.uniform(0, length - window), seconds=window
        )
        notes = transpose(bass_line(tracks), int(rng.integers(-4, 5)))
        if len(notes) < 30:
            continue
        audio, chain = _play_bass(notes, source, rng, seconds=window + 1)
        yield from levelled(audio, f"{name} {chain}")


def in_octaves(notes: Sequence[Note], rng: np.random.Generator) -> tuple[tuple[Note, ...], str]:
    """A bass line as other players and pedals have it, and how: all of it an octave up ("up"), every other
    note ("leaps"), or each with a softer one an octave "above" or "below".
    """
    manner = str(rng.choice(["up", "leaps", "above", "below"]))
    up = transpose(notes, 12)
    if manner == "up":
        return up, manner
    if manner == "leaps":
        return tuple(up[i] if i % 2 else note for i, note in enumerate(notes)), manner
    second = up if manner == "above" else transpose(notes, -12)
    softer = rng.uniform(0.4, 0.9)
    doubles = (dataclasses.replace(n, velocity=max(round(n.velocity * softer), 1)) for n in second)
    return (*notes, *doubles), manner


def _play_bass(
    notes: Sequence[Note], source: Source, rng: np.random.Generator, *, seconds: float
) -> tuple[Audio, str]:
    """Notes through the source's bass, (n, 1), and what it was plugged into.

    settings["octaves"] has the line moved and doubled by octaves.
    """
    sound = source.files[-1]
    manner = ""
    if source.settings.get("octaves"):
        notes, manner = in_octaves(notes, rng)
    if kind := source.settings.get("made"):
        audio = play(notes, made_basses.make(kind, notes, rng), rng, seconds=seconds)
    elif sound.endswith("index.tsv"):
        instrument = load_instrument(str(Path(sound).parent), tuple(source.settings["articulations"]))
        audio = play(notes, instrument, rng, seconds=seconds)
    else:
        track = Track(int(rng.choice(source.settings["programs"])), tuple(notes))
        audio = synthesize([track], sound, seconds=seconds).mean(axis=1, keepdims=True)
    chain = str(rng.choice(["di", "drive", "amp", "plain"]))
    if chain == "drive":
        audio = effects.drive(audio, rng.uniform(1.0, 6.0))
    if chain in ("drive", "amp"):
        dull = effects.low_pass(effects.eq_grid(), rng.uniform(1200, 5000), 2)
        audio = effects.equalize(audio, dull)
    if rng.random() < 0.5:
        audio = effects.compress(audio, threshold_db=rng.uniform(-20, -8), ratio=rng.uniform(2, 5))
    if chain != "plain":
        audio = effects.colour(audio, rng, wet=0.0)
    return audio, f"{chain} {manner}".strip()


def substitute(program: int, rng: np.random.Generator) -> int:
    """Half of the time another program of the same family; synth effects become pads."""
    for family in FAMILIES:
        if program in family:
            return int(rng.choice(family)) if rng.random() < 0.5 else program
    return int(rng.choice(FAMILIES[-1])) if program >= 96 else program


def other(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """What is neither drums nor bass in the Freedoom music, guitars through an amplifier; (n, 2).

    settings["only_guitars"] keeps the guitar tracks and gives them electric guitar programs.
    """
    return minutes_of(source, _other(source, rng))


def _other(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    table, archive = source.files[:2]
    index = members(table, archive)
    for name in spread(list(index), rng):
        member, length = index[name]
        window = min(length, LONGEST)
        tracks = clip_tracks(
            read_tracks(archive, member), start=rng.uniform(0, length - window), seconds=window
        )
        shift = int(rng.integers(-4, 5))
        audio = _play_others(tracks, source, rng, seconds=window + 2, shift=shift)
        if np.abs(audio).max() > 0:
            yield from levelled(audio, name)


def _play_others(
    tracks: Sequence[Track], source: Source, rng: np.random.Generator, *, seconds: float, shift: int
) -> Audio:
    """What is neither drums nor bass of these tracks through the source's soundfont, `shift` semitones up."""
    sound = source.files[2]
    guitars: list[Track] = []
    rest: list[Track] = []
    for t in tracks:
        if t.drums or t.program in BASS_PROGRAMS or t.program >= 112:
            continue
        program = substitute(t.program, rng)
        electric = program in (26, 27, 28, 29, 30, 31)
        if source.settings.get("only_guitars"):
            if t.program not in GUITAR_PROGRAMS and t.program not in (80, 81, 84, 87):
                continue
            program, electric = int(rng.choice([27, 28, 29, 30, 30, 29])), True
        moved = Track(program, transpose(t.notes, shift))
        (guitars if electric else rest).append(moved)
    audio = np.zeros((int(seconds * SAMPLE_RATE), 2), np.float32)
    for group, plugged in ((guitars, True), (rest, False)):
        if sum(len(t.notes) for t in group) < 20:
            continue
        pans = [int(rng.integers(24, 104)) for _ in group]
        sounds = synthesize(group, sound, seconds=seconds, room=bool(rng.random() < 0.4), pans=pans)
        if plugged and rng.random() < 0.75:
            sounds = effects.amp(sounds, rng, amount=10 ** rng.uniform(-0.3, 0.9))
        audio += normalise(sounds, level_db=rng.uniform(-26, -18))
    return effects.colour(audio, rng, wet=0.3) if np.abs(audio).max() > 0 else audio


def song_stem(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """One stem of the beginning of a song of Freedoom's; its other stems, sources too, are as long. (n, 2)

    settings: the song's name, which stem, how many seconds, and the semitones that it is moved by.
    """
    table, archive = source.files[:2]
    name, stem, seconds, shift = (source.settings[key] for key in ("song", "stem", "seconds", "shift"))
    member, _ = members(table, archive)[name]
    tracks = clip_tracks(read_tracks(archive, member), start=0.0, seconds=seconds)
    if stem == "drums":
        (notes,) = (t.notes for t in tracks if t.drums)
        audio = _play_kit(notes, source, rng, seconds=seconds)
    elif stem == "bass":
        audio, _ = _play_bass(transpose(bass_line(tracks), shift), source, rng, seconds=seconds)
    else:
        audio = _play_others(tracks, source, rng, seconds=seconds, shift=shift)
    audio = stereo(audio[: round(seconds * SAMPLE_RATE)])
    short = round(seconds * SAMPLE_RATE) - len(audio)
    yield Piece(np.pad(normalise(audio, level_db=STEM_LEVELS[stem]), ((0, short), (0, 0))), name)


def strummed(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Strummed and picked guitars over made-up chord progressions; (n, 2)."""
    return minutes_of(source, strums.performances(source, rng))
