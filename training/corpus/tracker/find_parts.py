"""Classify the instruments of tracker modules: `python -m training.corpus.tracker.find_parts --debian PACKAGES`.

A module does not say which of its instruments are drums, bass or other, so each is rendered alone and analysed.
Instruments whose sound is ambiguous, or contradicts their name, are left out of the song. Songs that still have all
three stems are written to module_parts.tsv next to this module.
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

from training.corpus import BAND
from training.corpus.recorded.sources import Audio
from training.corpus.tracker import tracker
from training.corpus.tracker.songs import MODULE_PACKAGES, MODULE_PARTS, Parts, Row, find_modules, write_parts
from training.progress import progress_bar

RATE = 22_050  # Hz, for the analysis
FRAME, HOP = 2048, 1024  # samples: 93 and 46 ms
SHORTEST, LONGEST = 30.0, 120.0  # s: minimum length of a module, maximum length analysed
MIN_SHARE = 0.02  # of each part in the song's energy
INAUDIBLE = 1e-3  # share of the energy below which instruments are left out
DECAY_FRAMES = 4  # after an onset, to measure its decay
# What an instrument's name may say; most say nothing.
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
VOICE = re.compile(  # the songs must not contain voices
    r"choir|vo(ice|x\b|cal)|speech|\b[ao]+h+\b|yeah|scream|shout|\bcry|laugh|h(u|oo)man|kuoro|meo|meee", re.I
)


@dataclass(frozen=True)
class Sound:
    """How an instrument sounds and is played."""

    notes: int  # number of different notes
    main_note: float  # share of the most frequent note
    median: float  # Hz below which half of the energy lies
    below_150: float  # share of the energy below 150 Hz
    below_250: float
    flatness: float  # spectral flatness from 60 Hz to 6 kHz: 0 for a tone, 1 for noise
    active: float  # share of the frames within 30 dB of the loudest
    decay: float  # dB by which notes decay within DECAY_FRAMES


def measure(audio: Audio, notes: Counter[int]) -> Sound:
    """Measure a solo recording of an instrument, (n, c) at RATE."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, ((0, FRAME), (0, 0))), FRAME, axis=0)
    power = np.square(np.abs(np.fft.rfft(frames[::HOP] * np.hanning(FRAME)))).sum(axis=1)  # (frames, bins)
    frequencies = np.fft.rfftfreq(FRAME, 1 / RATE)
    total = power.sum(axis=1)
    active = total > total.max() * 1e-3
    cumulative = np.cumsum(power.sum(axis=0)) / total.sum()
    audible = power[active][:, (frequencies > 60) & (frequencies < 6000)] + 1e-12 * power.max()
    flatness = np.exp(np.log(audible).mean(axis=1)) / audible.mean(axis=1)
    return Sound(
        notes=len(notes),
        main_note=max(notes.values()) / notes.total(),
        median=float(frequencies[np.searchsorted(cumulative, 0.5)]),
        below_150=float(cumulative[np.searchsorted(frequencies, 150)]),
        below_250=float(cumulative[np.searchsorted(frequencies, 250)]),
        flatness=float(np.average(flatness, weights=total[active])),
        active=float(active.mean()),
        decay=_measure_decay(10 * np.log10(total + total.max() * 1e-6)),
    )


def _measure_decay(levels: NDArray[np.float64]) -> float:
    """Median decay in dB within DECAY_FRAMES after loud onsets (rises by 6 dB)."""
    later = levels[1 + DECAY_FRAMES :]
    rises = np.diff(levels)[: len(later)]
    onset_levels = np.maximum(levels[1:-1], levels[2:])[: len(later)]
    onsets = (rises > 6) & (levels[1 : 1 + len(later)] > levels.max() - 20)
    return float(np.median((onset_levels - later)[onsets])) if onsets.any() else 0.0


def possible_parts(sound: Sound) -> set[str]:
    """The parts that an instrument may belong to by its sound; the thresholds agree with informative names.

    Drums repeat one note, decay and are noisy; a bass plays many low notes.
    """
    if sound.notes <= 2 or sound.main_note >= 0.8:
        if sound.flatness > 0.03:
            return {"drums"}
        if sound.median < 130 and sound.below_150 > 0.5:  # a kick, or a bass on one note
            return {"drums"} if sound.decay > 8 or sound.flatness > 0.015 else {"drums", "bass"}
        if sound.decay > 12 and sound.active < 0.35:
            return {"drums"} if sound.flatness >= 0.008 else {"drums", "other"}
        if sound.flatness < 0.008 and sound.median > 300 and sound.active > 0.4:
            return {"other"}
        return {"drums", "other"} if sound.median > 250 else set(BAND)
    if sound.flatness > 0.08:
        return {"drums"}
    if sound.median < 165 and sound.below_250 > 0.8 and sound.flatness < 0.03:
        return {"drums", "bass"} if sound.notes < 4 and sound.decay > 10 else {"bass"}
    if sound.median > 250 and sound.below_250 < 0.4:
        return {"other"} if sound.flatness < 0.05 else {"drums", "other"}
    if sound.notes < 4 and sound.decay > 10:
        return {"drums", "other"} if sound.median > 250 else set(BAND)
    return {"bass", "other"}


def classify(sound: Sound, name: str) -> str | None:
    """The part of an instrument, or None if in doubt.

    The name decides between the parts that the sound allows; a name that contradicts the sound raises doubt.
    """
    if VOICE.search(name):
        return None
    parts = possible_parts(sound)
    named = {part for part, pattern in NAMES.items() if pattern.search(name)}
    if len(named) == 1:
        parts = named if named <= parts else parts | named
    return parts.pop() if len(parts) == 1 else None


def find_parts(content: bytes) -> tuple[float, Parts] | None:
    """A module's length in s and the instruments of each part; None if a part is missing.

    Raises ValueError if libopenmpt cannot read the module.
    """
    score = tracker.read_score(content)
    if score.seconds < SHORTEST:
        return None
    parts: Parts = dict.fromkeys(BAND, ())
    instruments: list[tuple[int, str | None, float]] = []  # instrument, part, energy
    for instrument, notes in score.notes.items():
        seconds = min(score.seconds, LONGEST)
        audio = tracker.play(content, seconds=seconds, instruments=[instrument], rate=RATE)
        if energy := float(np.square(audio, dtype=np.float64).sum()):
            part = classify(measure(audio, notes), score.names[instrument])
            instruments.append((instrument, part, energy))
    total = sum(energy for _, _, energy in instruments)
    shares = dict.fromkeys(BAND, 0.0)
    for instrument, part, energy in instruments:
        if part is not None:
            shares[part] += energy / total
            if energy > INAUDIBLE * total:
                parts[part] += (instrument,)
    return (score.seconds, parts) if min(shares.values()) > MIN_SHARE else None


def list_songs(debian: Path, package: str) -> list[Row]:
    """The modules of a package that have all parts."""
    rows: list[Row] = []
    for file in find_modules(debian / package):
        try:
            song = find_parts((debian / package / file).read_bytes())
        except ValueError:  # another type of file with the same suffix
            continue
        if song:
            rows.append((package, file, *song))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus.tracker.find_parts",
        description="Classify the instruments of tracker modules as drums, bass or other.",
    )
    parser.add_argument("--debian", type=Path, required=True, help="folder of unpacked Debian packages")
    parser.add_argument("--out", type=Path, default=MODULE_PARTS, help="table of the songs")
    options = parser.parse_args(arguments)
    if not tracker.is_installed():
        parser.error(f"libopenmpt is not installed; on Debian: apt-get install {tracker.LIBRARY}")
    if missing := [name for name in MODULE_PACKAGES if not (options.debian / name).is_dir()]:
        parser.error(f"{options.debian} lacks {', '.join(missing)}; fetch them (training/corpus/README.md)")
    songs: list[Row] = []
    with (
        progress_bar("packages", total=len(MODULE_PACKAGES)) as advance,
        concurrent.futures.ProcessPoolExecutor() as pool,
    ):
        for rows in pool.map(partial(list_songs, options.debian), MODULE_PACKAGES):
            songs += rows
            advance()
    write_parts(options.out, songs)
    print(f"{len(songs)} songs, {sum(row[2] for row in songs) / 60:.0f} minutes, in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
