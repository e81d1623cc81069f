"""One song, one method: true stems and the method's files, read side by side, to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio.decode import open_audio
from tfswa_sep.constants import ACCOMPANIMENT, OTHER, STEMS
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation import bsseval
from tfswa_sep.evaluation.metrics import RunningScore
from tfswa_sep.evaluation.multitrack import BLOCK_SECONDS, Feed, Song
from tfswa_sep.evaluation.results import FrameStatistics, StemScore
from tfswa_sep.inference.stem_matrix import parse_stems

MUSEVAL, FAST = "museval", "fast"  # what can be asked for besides global SDR, SI-SDR, kept and leaked


@dataclass(frozen=True)
class Task:
    """All that a process needs to score one song."""

    song: Song
    mixture: Path  # as Song.write_mixture wrote it
    estimates: Mapping[str, Sequence[Path]]  # stem -> the files whose sum is its estimate
    rate: int  # Hz, at which everything is compared
    frames: int  # length of the mixture
    metrics: tuple[str, ...]  # of MUSEVAL and FAST


@dataclass(frozen=True)
class Scored:
    """What came out."""

    stems: dict[str, StemScore]
    skipped: dict[str, str]  # stem -> why it has no number, or not all
    warnings: tuple[str, ...]


def score(task: Task) -> Scored:
    """Score every stem that has an estimate and of which the song has the true parts.

    The mixture says how long the song is: estimates that end early go on with silence, what stands after the
    end does not count, and both are told. Nothing can be said of a stem that is silent, nor of one that is
    the whole mixture: it is left out, and so is told.
    Raises InputError for a file that cannot be read and for a song that has none of the stems, UsageError where
    a metric's package is missing.
    """
    running, ratios_of_frames, warnings = _global_scores(task)
    numbers: dict[str, dict[str, float | None]] = {}
    skipped = {stem: "the songs have no such true stem" for stem in task.estimates if stem not in running}
    if not running:
        raise InputError(
            f"{task.song.name} is made of {', '.join(task.song.stems)}: {', '.join(skipped)} cannot be scored"
        )
    for stem, (of_estimate, of_mixture) in running.items():
        if of_estimate.is_silent:
            skipped[stem] = (
                f"silent in this song; the estimate is {of_estimate.level():+.1f} dB to the mixture"
            )
        elif of_estimate.is_alone:
            skipped[stem] = f"the whole mixture of this song; SDR of the estimate {of_estimate.sdr():.1f} dB"
        else:
            kept, leaked = of_estimate.shares()
            numbers[stem] = {
                "sdr": of_estimate.sdr(),
                "frame_sdr": FrameStatistics.of(ratios_of_frames[stem]).median,
                "mixture_sdr": of_mixture.sdr(),
                "gain": of_estimate.sdr() - of_mixture.sdr(),
                "si_sdr": of_estimate.si_sdr(),
                "kept": kept,
                "leaked": leaked,
            }
    frames: dict[str, dict[str, FrameStatistics]] = {stem: {} for stem in numbers}
    if task.metrics and numbers:
        true, guess = _whole_signals(task, list(numbers))
        for metric, ratios in ((MUSEVAL, bsseval.museval_frames), (FAST, bsseval.fast_ratios)):
            if metric not in task.metrics:
                continue
            found, why = ratios(true, guess, task.rate)
            skipped |= why
            for stem, series in found.items():
                for name, values in series.items():
                    spread = FrameStatistics.of(values)
                    numbers[stem][f"{metric}_{name}"] = spread.median
                    frames[stem][f"{metric}_{name}"] = spread
    stems = {stem: StemScore(found, frames[stem]) for stem, found in numbers.items()}
    return Scored(stems, skipped, warnings)


def true_parts(estimated: Sequence[str], stems: Sequence[str]) -> dict[str, list[str]]:
    """Which true stems an estimate is compared with the sum of; one that cannot be compared is left out.

    "other" is what neither another estimate nor another of MUSDB18's stems is named after: a guitar that the
    songs have, but the method has not, is in it.

    Args:
        estimated: What a method puts out.
        stems: What the song is made of.
    """
    named = {term for stem in estimated for term in stem.split("+")} - {ACCOMPANIMENT}
    others = [stem for stem in stems if stem not in (named | set(STEMS)) - {OTHER}]
    found: dict[str, list[str]] = {}
    for stem in estimated:
        terms = set(stem.split("+"))
        if OTHER in terms and ACCOMPANIMENT not in stems:
            if others and terms - {OTHER} <= set(stems) and named <= {*stems, *STEMS}:
                found[stem] = [name for name in stems if name in terms or name in others]
            continue
        try:
            row = parse_stems([stem], stems)[1][0]
        except UsageError:
            continue
        # A song is the sum of its stems: the last column counts for each of them.
        names = [name for name, weight in zip(stems, row[:-1] + row[-1], strict=True) if weight]
        if names:
            found[stem] = names
    return found


def _global_scores(
    task: Task,
) -> tuple[dict[str, tuple[RunningScore, RunningScore]], dict[str, NDArray[np.float64]], tuple[str, ...]]:
    """({stem: (of the estimate, of the mixture taken for it)}, {stem: SDR of frames of 1 s}, oddities).

    The frames are museval's, but need nothing of the other stems: silence there leaves them out of museval's.
    """
    truths, parts = task.song.truths(task.rate), true_parts(list(task.estimates), task.song.stems)
    estimates = {stem: Feed(list(task.estimates[stem]), task.rate) for stem in parts}
    mixture = Feed([task.mixture], task.rate)
    running = {stem: (RunningScore(), RunningScore()) for stem in estimates}
    frames: dict[str, list[NDArray[np.float64]]] = {stem: [] for stem in estimates}
    for start in range(0, task.frames, BLOCK_SECONDS * task.rate):
        size = min(BLOCK_SECONDS * task.rate, task.frames - start)
        taken = {stem: feed.take(size) for stem, feed in truths.items()}
        mixed = mixture.take(size)
        everything = np.sum(list(taken.values()), axis=0)
        blocks = {stem: np.sum([taken[part] for part in names], axis=0) for stem, names in parts.items()}
        for stem, (of_estimate, of_mixture) in running.items():
            rest = everything - blocks[stem]
            estimate = estimates[stem].take(size)
            of_estimate.add(blocks[stem], rest, estimate)
            of_mixture.add(blocks[stem], rest, mixed)
            if size >= task.rate or start == 0:  # blocks are whole frames; a rest at the end is none
                true = bsseval.round_to_16_bits(blocks[stem].T.astype(np.float64))
                frames[stem].append(bsseval.frame_sdr(true, estimate.T.astype(np.float64), task.rate))
    warnings = [
        f"{stem} has {feed.frames} frames, the mixture {task.frames}"
        for stem, feed in estimates.items()
        if feed.drain() != task.frames
    ]
    warnings += [
        f"the true {stem} has {feed.frames} frames, the mixture {task.frames}: the rest does not count"
        for stem, feed in truths.items()
        if feed.drain() > task.frames
    ]
    for paths in task.estimates.values():
        for path in paths:
            with open_audio(path) as reader:
                if reader.sample_rate != task.rate:
                    warnings.append(f"{path.name} has {reader.sample_rate} Hz, resampled to {task.rate}")
    found = {stem: np.concatenate(series) if series else np.empty(0) for stem, series in frames.items()}
    return running, found, tuple(dict.fromkeys(warnings))


def _whole_signals(
    task: Task, stems: Sequence[str]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """({stem: true}, {stem: estimate}), each (n, c) and of the song's length; c is 1 where all is mono."""
    parts = true_parts(list(task.estimates), task.song.stems)
    feeds = task.song.truths(task.rate)
    read = {
        name: bsseval.round_to_16_bits(feeds[name].take(task.frames).T.astype(np.float64))
        for name in dict.fromkeys(name for stem in stems for name in parts[stem])
    }
    true = {stem: np.sum([read[name] for name in parts[stem]], axis=0) for stem in stems}
    guess = {
        stem: Feed(list(task.estimates[stem]), task.rate).take(task.frames).T.astype(np.float64)
        for stem in stems
    }
    everything = (*true.values(), *guess.values())
    if all(np.array_equal(signal[:, 0], signal[:, 1]) for signal in everything):
        return tuple({stem: signal[:, :1] for stem, signal in side.items()} for side in (true, guess))  # type: ignore[return-value]
    return true, guess
