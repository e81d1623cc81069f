"""Render MIDI to drums, bass and other with soundfonts, sampled and synthesized instruments, and studio effects."""

import dataclasses
import functools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.sources import (
    Audio,
    Piece,
    Source,
    normalize,
    read_tsv,
    split_render,
    stereo,
)
from training.corpus.rendered import effects, strums, synth_basses
from training.corpus.rendered.hydrogen import load_hydrogen
from training.corpus.rendered.midi import Track, clip_tracks, read_tracks, synthesize, transpose
from training.corpus.rendered.sampler import Note, load_instrument, load_kit, play, play_drums

ROLAND_TO_GM = {22: 42, 26: 46, 58: 43, 40: 38}  # hi-hat edges, floor tom rim and snare rim in Groove MIDI
BASS_PROGRAMS = range(32, 40)
GUITAR_PROGRAMS = range(24, 32)
# General MIDI programs that can replace each other
FAMILIES = (
    (0, 1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11, 12, 13, 14), (16, 17, 18, 19, 20, 21, 22),
    (24, 25, 26, 27, 28, 29, 30),
    (40, 41, 42, 44, 45, 48, 49, 50, 51), (46, 104, 105, 106, 107), (56, 57, 58, 59, 60, 61, 62, 63),
    (64, 65, 66, 67, 68, 69, 70, 71), (72, 73, 74, 75, 79), (80, 81, 82, 83, 84, 87),
    (88, 89, 90, 92, 93, 94, 95),
)  # fmt: skip
LONGEST = 150.0  # s used of one MIDI file
STEM_LEVELS = {"drums": -20.0, "bass": -22.0, "other": -21.0}  # dBFS, in a rendered song

Recipe = Callable[[Source, np.random.Generator], Iterator[Piece]]


def interleave(names: list[str], rng: np.random.Generator) -> list[str]:
    """Shuffle paths so that their top folders (drummers) take turns."""
    groups: dict[str, list[str]] = {}
    for name in rng.permutation(sorted(names)):
        groups.setdefault(str(name).split("/")[0], []).append(str(name))
    longest = max(map(len, groups.values()), default=0)
    return [g[i] for i in range(longest) for g in groups.values() if i < len(g)]


def list_members(table: str, archive: str) -> dict[str, tuple[str, float]]:
    """Name in the table -> (member of the zip archive, duration in s)."""
    rows = read_tsv(Path(table))
    with zipfile.ZipFile(archive) as z:
        names = z.namelist()
    members = {name.split("/", 1)[-1]: name for name in names} | {name: name for name in names}
    return {r["file"]: (members[r["file"]], float(r["seconds"])) for r in rows if r["file"] in members}


def limit_minutes(recipe: Recipe) -> Recipe:
    """Make a recipe stop after settings["minutes"]."""

    @functools.wraps(recipe)
    def limited(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
        left = source.settings["minutes"] * 60 * SAMPLE_RATE
        for piece in recipe(source, rng):
            yield piece
            left -= len(piece.audio)
            if left <= 0:
                return

    return limited


@limit_minutes
def render_drums(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Drum takes (settings["midi"]: groove or freedoom) on a sampled kit or a soundfont's presets."""
    table, archive = source.files[:2]
    index = list_members(table, archive)
    shortest = 20 if source.settings["midi"] == "groove" else 30
    for name in interleave([n for n, (_, s) in index.items() if s >= shortest], rng):
        member, length = index[name]
        tracks = [t for t in read_tracks(archive, member) if t.drums]
        seconds = min(length, 120.0)
        tracks = clip_tracks(tracks, start=0.0, seconds=seconds)
        if not tracks or len(tracks[0].notes) < 20:
            continue
        audio = _play_kit(tracks[0].notes, source, rng, seconds=seconds + 1.5)
        yield from split_render(audio, name)


def _play_kit(notes: Sequence[Note], source: Source, rng: np.random.Generator, *, seconds: float) -> Audio:
    """Drum notes on the source's kit or one of its presets, with studio effects."""
    sound = source.files[2]
    notes = tuple(dataclasses.replace(n, pitch=ROLAND_TO_GM.get(n.pitch, n.pitch)) for n in notes)
    if sound.endswith(("index.tsv", "drumkit.xml")):
        kit = load_kit(str(Path(sound).parent)) if sound.endswith(".tsv") else load_hydrogen(sound)
        audio = play_drums(notes, kit, rng, seconds=seconds)
    else:
        preset = int(rng.choice(source.settings["presets"]))
        track = Track(preset, notes, source.settings.get("bank128", True))
        audio = synthesize([track], sound, seconds=seconds)
    if rng.random() < 0.4:
        threshold_db, ratio = rng.uniform(-24, -10), rng.uniform(2, 6)
        audio = effects.compress(audio, threshold_db=threshold_db, ratio=ratio, release=0.1)
    if rng.random() < 0.25:
        audio = effects.drive(audio, rng.uniform(0.5, 2.0))
    return effects.colour(audio, rng)


def find_bass_line(tracks: list[Track]) -> tuple[Note, ...]:
    """The bass track or else the lowest melodic one, in the octave of a bass; may be empty."""
    melodic = [t for t in tracks if not t.drums and t.program < 112 and len(t.notes) >= 30]
    if not melodic:
        return ()
    basses = [t for t in melodic if t.program in BASS_PROGRAMS]
    if basses:
        notes = max(basses, key=lambda t: len(t.notes)).notes
    else:
        notes = min(melodic, key=lambda t: float(np.mean([n.pitch for n in t.notes]))).notes
    centre = float(np.median([n.pitch for n in notes]))
    return transpose(notes, 12 * round((36 - centre) / 12))


def _read_windows(source: Source, rng: np.random.Generator) -> Iterator[tuple[str, list[Track], float]]:
    """Name, tracks and seconds of a random window of each MIDI file."""
    table, archive = source.files[:2]
    index = list_members(table, archive)
    for name in interleave(list(index), rng):
        member, length = index[name]
        seconds = min(length, LONGEST)
        start = rng.uniform(0, length - seconds)
        yield name, clip_tracks(read_tracks(archive, member), start=start, seconds=seconds), seconds


@limit_minutes
def render_bass(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Bass lines of the Freedoom music on a sampled or synthesized bass or a soundfont's; (n, 1)."""
    for name, tracks, seconds in _read_windows(source, rng):
        notes = transpose(find_bass_line(tracks), int(rng.integers(-4, 5)))
        if len(notes) >= 30:
            audio, chain = _play_bass(notes, source, rng, seconds=seconds + 1)
            yield from split_render(audio, f"{name} {chain}")


def vary_octaves(notes: Sequence[Note], rng: np.random.Generator) -> tuple[tuple[Note, ...], str]:
    """A variation of a bass line and its name.

    Either all notes ("up") or every other one ("leaps") move up an octave, or each is doubled by a softer note an
    octave "above" or "below".
    """
    variation = str(rng.choice(["up", "leaps", "above", "below"]))
    up = transpose(notes, 12)
    if variation == "up":
        return up, variation
    if variation == "leaps":
        return tuple(up[i] if i % 2 else note for i, note in enumerate(notes)), variation
    second = up if variation == "above" else transpose(notes, -12)
    gain = rng.uniform(0.4, 0.9)
    doubles = (dataclasses.replace(n, velocity=max(round(n.velocity * gain), 1)) for n in second)
    return (*notes, *doubles), variation


def _play_bass(
    notes: Sequence[Note], source: Source, rng: np.random.Generator, *, seconds: float
) -> tuple[Audio, str]:
    """Notes on the source's bass, (n, 1), and the effects used; settings["octaves"] enables `vary_octaves`."""
    sound = source.files[-1]
    variation = ""
    if source.settings.get("octaves"):
        notes, variation = vary_octaves(notes, rng)
    if kind := source.settings.get("made"):
        audio = play(notes, synth_basses.build_instrument(kind, notes, rng), rng, seconds=seconds)
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
        cabinet = effects.low_pass(effects.eq_frequencies(), rng.uniform(1200, 5000), 2)
        audio = effects.equalize(audio, cabinet)
    if rng.random() < 0.5:
        audio = effects.compress(audio, threshold_db=rng.uniform(-20, -8), ratio=rng.uniform(2, 5))
    if chain != "plain":
        audio = effects.colour(audio, rng, wet=0.0)
    return audio, f"{chain} {variation}".strip()


def replace_program(program: int, rng: np.random.Generator) -> int:
    """With probability one half, a random program of the same family; synth effects become pads."""
    for family in FAMILIES:
        if program in family:
            return int(rng.choice(family)) if rng.random() < 0.5 else program
    return int(rng.choice(FAMILIES[-1])) if program >= 96 else program


@limit_minutes
def render_other(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Everything but drums and bass in the Freedoom music, with guitars through an amplifier; (n, 2).

    settings["only_guitars"] keeps the guitar tracks and gives them electric guitar programs.
    """
    for name, tracks, seconds in _read_windows(source, rng):
        shift = int(rng.integers(-4, 5))
        audio = _play_others(tracks, source, rng, seconds=seconds + 2, shift=shift)
        if np.abs(audio).max() > 0:
            yield from split_render(audio, name)


def _play_others(
    tracks: Sequence[Track], source: Source, rng: np.random.Generator, *, seconds: float, shift: int
) -> Audio:
    """Everything but drums and bass on the source's soundfont, transposed by `shift` semitones."""
    sound = source.files[2]
    guitars: list[Track] = []
    rest: list[Track] = []
    for t in tracks:
        if t.drums or t.program in BASS_PROGRAMS or t.program >= 112:
            continue
        program = replace_program(t.program, rng)
        electric = program in (26, 27, 28, 29, 30, 31)
        if source.settings.get("only_guitars"):
            if t.program not in GUITAR_PROGRAMS and t.program not in (80, 81, 84, 87):
                continue
            program, electric = int(rng.choice([27, 28, 29, 30, 30, 29])), True
        (guitars if electric else rest).append(Track(program, transpose(t.notes, shift)))
    audio = np.zeros((int(seconds * SAMPLE_RATE), 2), np.float32)
    for group, amplified in ((guitars, True), (rest, False)):
        if sum(len(t.notes) for t in group) < 20:
            continue
        pans = [int(rng.integers(24, 104)) for _ in group]
        part = synthesize(group, sound, seconds=seconds, room=bool(rng.random() < 0.4), pans=pans)
        if amplified and rng.random() < 0.75:
            part = effects.simulate_amp(part, rng, amount=10 ** rng.uniform(-0.3, 0.9))
        audio += normalize(part, level_db=rng.uniform(-26, -18))
    return effects.colour(audio, rng, wet=0.3) if np.abs(audio).max() > 0 else audio


def render_song_stem(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """One stem of the beginning of a Freedoom song, as long as its other stems; (n, 2).

    Settings: the song, which stem, how many seconds, and the transposition in semitones.
    """
    table, archive = source.files[:2]
    name, stem, seconds, shift = (source.settings[key] for key in ("song", "stem", "seconds", "shift"))
    member, _ = list_members(table, archive)[name]
    tracks = clip_tracks(read_tracks(archive, member), start=0.0, seconds=seconds)
    if stem == "drums":
        (notes,) = (t.notes for t in tracks if t.drums)
        audio = _play_kit(notes, source, rng, seconds=seconds)
    elif stem == "bass":
        audio, _ = _play_bass(transpose(find_bass_line(tracks), shift), source, rng, seconds=seconds)
    else:
        audio = _play_others(tracks, source, rng, seconds=seconds, shift=shift)
    audio = stereo(audio[: round(seconds * SAMPLE_RATE)])
    missing = round(seconds * SAMPLE_RATE) - len(audio)
    yield Piece(np.pad(normalize(audio, level_db=STEM_LEVELS[stem]), ((0, missing), (0, 0))), name)


@limit_minutes
def render_strums(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Strummed and picked guitars; (n, 2)."""
    return strums.performances(source, rng)
