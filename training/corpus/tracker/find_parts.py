"""Classify the instruments of tracker modules: `python -m training.corpus.tracker.find_parts --debian PACKAGES`.

A module does not say which of its instruments are drums, bass or other, so each is rendered alone and analysed.
Instruments whose sound is ambiguous, or contradicts their name, are left out of the song. Songs that still have all
three stems are written to parts_found.tsv next to this module.
"""

import argparse
import concurrent.futures
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from training.corpus import BAND
from training.corpus.recorded.sources import Audio
from training.corpus.tracker import tracker
from training.corpus.tracker.songs import MODULE_PACKAGES, PARTS_FOUND, Parts, Row, modules_of, write_parts

RATE = 22_050  # Hz, to measure by
FRAME, HOP = 2048, 1024  # samples: 93 and 46 ms
SHORTEST, LONGEST = 30.0, 120.0  # s: of a module, and of what of it is listened to
LEAST = 0.02  # of a song's energy that each part has
UNHEARD = 1e-3  # of the energy: quieter instruments are left out
LATER = 4  # frames after which a stroke is compared with its beginning
# What a name may say of an instrument; few have names that say anything.
NAMES = {
    "drums": re.compile(
        r"\bbd|bass[ -]?dr|kick|snare|\bsn(a|d|r)?\d*\b|hi-?hat|\bhats?\b|\b[co]?hh?\d*\b|cymb|crash|"
        r"\bride\b|\btom\b|clap|drum|bongo|conga|tambo|\brim|shaker|cowbell|perc|breakbeat", re.I,
    ),
    "bass": re.compile(r"bass(?!oon|[ -]?dr)|\bbas\b", re.I),
    "other": re.compile(
        r"\bpad|string|(?<!bass)(?<!bass[ -])guit|\bgtr|\blead|chord|piano|organ|synth(?!.*bass)|flute|brass|"
        r"bell|harp|\barp|solo|\bsax|trump|violin", re.I,
    ),
}  # fmt: skip
VOICE = re.compile(  # nobody may sing in these songs
    r"choir|vo(ice|x\b|cal)|speech|\b[ao]+h+\b|yeah|scream|shout|\bcry|laugh|h(u|oo)man|kuoro|meo|meee", re.I
)


@dataclass(frozen=True)
class Sound:
    """How an instrument sounds and is played."""

    notes: int  # how many different ones
    main_note: float  # share of the most frequent one among the strokes
    middle: float  # Hz under which half of the energy lies
    under_150: float  # share of the energy
    under_250: float
    flatness: float  # geometric by arithmetic mean of the power, 60 Hz to 6 kHz: 0 a tone, 1 noise
    sounding: float  # share of the frames within 30 dB of the loudest
    drop: float  # dB by which strokes have faded after LATER frames


def measure(audio: Audio, notes: Counter[int]) -> Sound:
    """Measure an instrument that plays alone, (n, c) at RATE."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, ((0, FRAME), (0, 0))), FRAME, axis=0)
    power = np.square(np.abs(np.fft.rfft(frames[::HOP] * np.hanning(FRAME)))).sum(axis=1)  # (frames, bins)
    frequencies = np.fft.rfftfreq(FRAME, 1 / RATE)
    total = power.sum(axis=1)
    sounding = total > total.max() * 1e-3
    below = np.cumsum(power.sum(axis=0)) / total.sum()
    heard = power[sounding][:, (frequencies > 60) & (frequencies < 6000)] + 1e-12 * power.max()
    flatness = np.exp(np.log(heard).mean(axis=1)) / heard.mean(axis=1)
    return Sound(
        notes=len(notes),
        main_note=max(notes.values()) / notes.total(),
        middle=float(frequencies[np.searchsorted(below, 0.5)]),
        under_150=float(below[np.searchsorted(frequencies, 150)]),
        under_250=float(below[np.searchsorted(frequencies, 250)]),
        flatness=float(np.average(flatness, weights=total[sounding])),
        sounding=float(sounding.mean()),
        drop=_drop(10 * np.log10(total + total.max() * 1e-6)),
    )


def _drop(levels: NDArray[np.float64]) -> float:
    """Median over the loud onsets (a rise by 6 dB) of the dB that the level has fallen LATER frames on."""
    later = levels[1 + LATER :]
    rises = np.diff(levels)[: len(later)]
    begun = np.maximum(levels[1:-1], levels[2:])[: len(later)]
    onsets = (rises > 6) & (levels[1 : 1 + len(later)] > levels.max() - 20)
    return float(np.median((begun - later)[onsets])) if onsets.any() else 0.0


def possible(sound: Sound) -> set[str]:
    """The stems that an instrument may belong to, by its sound: thresholds with which telling names agree.

    Drums repeat one note, fade and are noisy; a bass has tones, many of them, and they are low.
    """
    if sound.notes <= 2 or sound.main_note >= 0.8:
        if sound.flatness > 0.03:
            return {"drums"}
        if sound.middle < 130 and sound.under_150 > 0.5:  # a kick, or a bass that stays on its note
            return {"drums"} if sound.drop > 8 or sound.flatness > 0.015 else {"drums", "bass"}
        if sound.drop > 12 and sound.sounding < 0.35:
            return {"drums"} if sound.flatness >= 0.008 else {"drums", "other"}
        if sound.flatness < 0.008 and sound.middle > 300 and sound.sounding > 0.4:
            return {"other"}
        return {"drums", "other"} if sound.middle > 250 else set(BAND)
    if sound.flatness > 0.08:
        return {"drums"}
    if sound.middle < 165 and sound.under_250 > 0.8 and sound.flatness < 0.03:
        return {"drums", "bass"} if sound.notes < 4 and sound.drop > 10 else {"bass"}
    if sound.middle > 250 and sound.under_250 < 0.4:
        return {"other"} if sound.flatness < 0.05 else {"drums", "other"}
    if sound.notes < 4 and sound.drop > 10:
        return {"drums", "other"} if sound.middle > 250 else set(BAND)
    return {"bass", "other"}


def part_of(sound: Sound, name: str) -> str | None:
    """The stem of an instrument, or None: a name decides between what the sound leaves open, and casts doubt
    where the sound says otherwise.
    """
    if VOICE.search(name):
        return None
    may_be = possible(sound)
    said = {part for part, pattern in NAMES.items() if pattern.search(name)}
    if len(said) == 1:
        may_be = said if said <= may_be else may_be | said
    return may_be.pop() if len(may_be) == 1 else None


def find_parts(content: bytes) -> tuple[float, Parts] | None:
    """A module's length in s and the instruments of each part; None where a part is missing.

    Raises ValueError when libopenmpt does not know the file.
    """
    score = tracker.read_score(content)
    if score.seconds < SHORTEST:
        return None
    found: Parts = dict.fromkeys(BAND, ())
    heard: list[tuple[int, str | None, float]] = []  # instrument, part, energy
    for instrument, notes in score.notes.items():
        seconds = min(score.seconds, LONGEST)
        audio = tracker.play(content, seconds=seconds, instruments=[instrument], rate=RATE)
        if energy := float(np.square(audio, dtype=np.float64).sum()):
            heard.append((instrument, part_of(measure(audio, notes), score.names[instrument]), energy))
    total = sum(energy for _, _, energy in heard)
    shares = dict.fromkeys(BAND, 0.0)
    for instrument, part, energy in heard:
        if part is not None:
            shares[part] += energy / total
            if energy > UNHEARD * total:
                found[part] += (instrument,)
    return (score.seconds, found) if min(shares.values()) > LEAST else None


def rows(debian: Path, package: str) -> list[Row]:
    """Every module of a package that has all parts."""
    listed: list[Row] = []
    for file in modules_of(debian / package):
        try:
            found = find_parts((debian / package / file).read_bytes())
        except ValueError:  # another kind of file with such an ending
            continue
        if found:
            listed.append((package, file, *found))
    return listed


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus.tracker.find_parts",
        description="Classify the instruments of tracker modules as drums, bass or other.",
    )
    parser.add_argument("--debian", type=Path, required=True, help="folder of unpacked Debian packages")
    parser.add_argument("--out", type=Path, default=PARTS_FOUND, help="table of the songs")
    options = parser.parse_args(arguments)
    if not tracker.installed():
        parser.error(f"libopenmpt is not installed; on Debian: apt-get install {tracker.LIBRARY}")
    if gone := [name for name in MODULE_PACKAGES if not (options.debian / name).is_dir()]:
        parser.error(f"{options.debian} lacks {', '.join(gone)}; fetch them (training/corpus/README.md)")
    with concurrent.futures.ProcessPoolExecutor() as pool:
        search = pool.map(partial(rows, options.debian), MODULE_PACKAGES)
        found = [row for part in track(search, "packages", total=len(MODULE_PACKAGES)) for row in part]
    write_parts(options.out, found)
    print(f"{len(found)} songs, {sum(row[2] for row in found) / 60:.0f} minutes, in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
