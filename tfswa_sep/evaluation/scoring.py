"""Score one song and method: true stems and estimates, read in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio.decode import open_audio
from tfswa_sep.constants import ACCOMPANIMENT, OTHER, STEMS
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation import bsseval, peass, perceptual
from tfswa_sep.evaluation.bsseval_v4 import References
from tfswa_sep.evaluation.metrics import RunningScore
from tfswa_sep.evaluation.multitrack import BLOCK_SECONDS, Feed, Song
from tfswa_sep.evaluation.results import Excerpt, FrameStatistics, StemScore
from tfswa_sep.inference.stem_matrix import parse_stems

# besides those of metrics.py
MUSEVAL, REFERENCE, FAST, PERCEPTUAL, PEASS = "museval", "museval-reference", "fast", "perceptual", "peass"
EXCERPT_SECONDS = 6  # of a song's best and worst part
QUIETEST_EXCERPT = 0.01  # of the stem's mean energy
GROUPS_KEPT = 2  # of museval's: all stems, and vocals with accompaniment


@dataclass(frozen=True)
class Task:
    """Everything needed to score one song with one method."""

    song: Song
    mixture: Path  # written by Song.write_mixture
    estimates: Mapping[str, Sequence[Path]]  # stem -> the files whose sum is its estimate
    rate: int  # Hz, of the comparison
    frames: int  # length of the mixture
    metrics: tuple[str, ...]  # of MUSEVAL, REFERENCE, FAST, PERCEPTUAL and PEASS


@dataclass(frozen=True)
class Scored:
    """Scores of one song and method."""

    stems: dict[str, StemScore]
    skipped: dict[str, str]  # stem -> why some or all of its scores are missing
    warnings: tuple[str, ...]


def score_song(tasks: Sequence[Task]) -> list[Scored]:
    """Score one song with several methods, which share what BSSEval computes from the true stems alone.

    Raises:
        InputError, UsageError: As `score` does.
    """
    factored: deque[References] = deque(maxlen=GROUPS_KEPT)
    return [score(task, factored) for task in tasks]


def score(task: Task, factored: deque[References] | None = None) -> Scored:
    """Score every stem that has both an estimate and a true signal.

    Everything is compared over the length of the mixture: shorter estimates are padded with silence, longer ones
    cut, with a warning. A stem that is silent or the whole mixture is skipped.

    Raises:
        InputError: A file cannot be read, or the song has none of the stems.
        UsageError: The package of a metric is not installed.
    """
    if not task.estimates:
        return Scored({}, {}, ())
    running, frame_scores, warnings = _global_scores(task)
    values: dict[str, dict[str, float | None]] = {}
    skipped = {
        stem: "the songs have no true stem of this name" for stem in task.estimates if stem not in running
    }
    if not running:
        raise InputError(
            f"{task.song.name} consists of {', '.join(task.song.stems)}: {', '.join(skipped)} cannot be scored"
        )
    for stem, (of_estimate, of_mixture) in running.items():
        if of_estimate.is_silent:
            skipped[stem] = (
                f"silent in this song; the estimate is at {of_estimate.level():+.1f} dB relative to the mixture"
            )
        elif of_estimate.is_alone:
            skipped[stem] = (
                f"the only stem of this song that sounds; SDR of the estimate {of_estimate.sdr():.1f} dB"
            )
        else:
            kept, leaked = of_estimate.shares()
            values[stem] = {
                "sdr": of_estimate.sdr(),
                "frame_sdr": FrameStatistics.of(frame_scores[stem][0]).median,
                "mixture_sdr": of_mixture.sdr(),
                "gain": of_estimate.sdr() - of_mixture.sdr(),
                "si_sdr": of_estimate.si_sdr(),
                "kept": kept,
                "leaked": leaked,
            }
    if PERCEPTUAL in task.metrics:
        for stem, scores in _perceptual_scores(task, list(running)):
            if stem in values:
                values[stem] |= scores
            elif running[stem][0].is_silent:
                skipped[stem] += f", logWMSE {scores['log_wmse']:.1f}"
    frames: dict[str, dict[str, FrameStatistics]] = {stem: {} for stem in values}
    if PEASS in task.metrics:
        for stem in values:
            values[stem] |= _peass_scores(task, stem)
    framewise = [metric for metric in task.metrics if metric not in (PERCEPTUAL, PEASS)]
    if framewise and values:
        true, estimates = _whole_signals(task, list(values))
        for metric in framewise:
            if metric == MUSEVAL:
                by_stem, reasons = bsseval.museval_frames(true, estimates, task.rate, factored=factored)
            elif metric == REFERENCE:
                by_stem, reasons = bsseval.package_frames(true, estimates, task.rate)
            else:
                by_stem, reasons = bsseval.fast_ratios(true, estimates, task.rate)
            column = MUSEVAL if metric == REFERENCE else metric
            skipped |= reasons
            for stem, by_name in by_stem.items():
                for name, per_frame in by_name.items():
                    statistics = FrameStatistics.of(per_frame)
                    values[stem][f"{column}_{name}"] = statistics.median
                    frames[stem][f"{column}_{name}"] = statistics
    stems = {
        stem: StemScore(scores, frames[stem], *_extremes(*frame_scores[stem]))
        for stem, scores in values.items()
    }
    return Scored(stems, skipped, warnings)


def true_parts(estimated: Sequence[str], stems: Sequence[str]) -> dict[str, list[str]]:
    """For each estimate, the true stems whose sum it is compared with; estimates without any are left out.

    "other" is every true stem that is neither estimated by name nor one of MUSDB18's: for a method without a
    guitar it includes the guitar.

    Args:
        estimated: Stems that the method estimates.
        stems: True stems of the song.
    """
    named = {term for stem in estimated for term in stem.split("+")} - {ACCOMPANIMENT}
    others = [stem for stem in stems if stem not in (named | set(STEMS)) - {OTHER}]
    parts: dict[str, list[str]] = {}
    for stem in estimated:
        terms = set(stem.split("+"))
        if OTHER in terms and ACCOMPANIMENT not in stems:
            if others and terms - {OTHER} <= set(stems) and named <= {*stems, *STEMS}:
                parts[stem] = [name for name in stems if name in terms or name in others]
            continue
        try:
            row = parse_stems([stem], stems)[1][0]
        except UsageError:
            continue
        # A song is the sum of its stems: the last column counts for each of them.
        names = [name for name, weight in zip(stems, row[:-1] + row[-1], strict=True) if weight]
        if names:
            parts[stem] = names
    return parts


def _extremes(
    ratios: NDArray[np.float64], energies: NDArray[np.float64]
) -> tuple[Excerpt, Excerpt] | tuple[None, None]:
    """The excerpts with the highest and the lowest SDR, from the SDR and the energy of a stem in frames of 1 s."""
    energies = np.where(np.isfinite(ratios), energies, 0)
    if not energies.any():
        return None, None
    errors = energies / 10 ** (np.where(np.isfinite(ratios), ratios, 0) / 10)
    window = np.ones(min(EXCERPT_SECONDS, len(energies)))
    loud, wrong = (np.convolve(series, window, "valid") for series in (energies, errors))
    candidates = np.flatnonzero(loud >= QUIETEST_EXCERPT * len(window) * energies.mean())
    decibels = 10 * np.log10(loud[candidates] / wrong[candidates])
    best, worst = (
        Excerpt(float(candidates[at]), float(decibels[at])) for at in (decibels.argmax(), decibels.argmin())
    )
    return best, worst


def _global_scores(
    task: Task,
) -> tuple[
    dict[str, tuple[RunningScore, RunningScore]],
    dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    tuple[str, ...],
]:
    """Score estimates, and the mixture as an estimate; ({stem: both scores}, {stem: frames}, warnings).

    Frames are (SDR, energy of the true stem) in frames of 1 s. They are museval's, but defined even where another
    stem is silent, which museval leaves out.
    """
    truths, parts = task.song.truths(task.rate), true_parts(list(task.estimates), task.song.stems)
    estimates = {stem: Feed(list(task.estimates[stem]), task.rate) for stem in parts}
    mixture = Feed([task.mixture], task.rate)
    running = {stem: (RunningScore(), RunningScore()) for stem in estimates}
    frames: dict[str, list[NDArray[np.float64]]] = {stem: [np.empty((2, 0))] for stem in estimates}
    for start in range(0, task.frames, BLOCK_SECONDS * task.rate):
        size = min(BLOCK_SECONDS * task.rate, task.frames - start)
        block = {stem: feed.take(size) for stem, feed in truths.items()}
        mixed = mixture.take(size)
        everything = np.sum(list(block.values()), axis=0)
        references = {stem: np.sum([block[part] for part in names], axis=0) for stem, names in parts.items()}
        for stem, (of_estimate, of_mixture) in running.items():
            rest = everything - references[stem]
            estimate = estimates[stem].take(size)
            of_estimate.add(references[stem], rest, estimate)
            of_mixture.add(references[stem], rest, mixed)
            if (
                size >= task.rate or start == 0
            ):  # blocks are whole frames; an incomplete one at the end does not count
                true = bsseval.round_to_16_bits(references[stem].T.astype(np.float64))
                ratios = bsseval.frame_sdr(true, estimate.T.astype(np.float64), task.rate)
                whole = len(ratios) * min(task.rate, size)
                energies = np.square(true[:whole]).reshape(len(ratios), -1).sum(axis=1)
                frames[stem].append(np.stack([ratios, energies]))
    warnings = [
        f"{stem} has {feed.frames} frames, the mixture {task.frames}"
        for stem, feed in estimates.items()
        if feed.drain() != task.frames
    ]
    warnings += [
        f"the true {stem} has {feed.frames} frames, the mixture {task.frames}: the excess is ignored"
        for stem, feed in truths.items()
        if feed.drain() > task.frames
    ]
    for paths in task.estimates.values():
        for path in paths:
            with open_audio(path) as reader:
                if reader.sample_rate != task.rate:
                    warnings.append(
                        f"{path.name} has a sample rate of {reader.sample_rate} Hz and was resampled to {task.rate}"
                    )
    joined = {stem: np.concatenate(series, axis=1) for stem, series in frames.items()}
    return running, {stem: (of[0], of[1]) for stem, of in joined.items()}, tuple(dict.fromkeys(warnings))


def _perceptual_scores(task: Task, stems: Sequence[str]) -> Iterator[tuple[str, dict[str, float | None]]]:
    """(stem, its metrics of perceptual.py), stem by stem; only logWMSE is defined for a silent one."""
    truths = {
        name: feed.take(task.frames).astype(float) for name, feed in task.song.truths(task.rate).items()
    }
    mixture = Feed([task.mixture], task.rate).take(task.frames).astype(float)
    parts = true_parts(list(task.estimates), task.song.stems)
    for stem in stems:
        true = np.sum([truths[name] for name in parts[stem]], axis=0)
        guess = Feed(list(task.estimates[stem]), task.rate).take(task.frames).astype(float)
        bleedless, fullness = perceptual.bleedless_fullness(true, guess, task.rate)
        yield (
            stem,
            {
                "log_wmse": perceptual.log_wmse(mixture, true, guess, task.rate),
                "si_sar": perceptual.si_sar(list(truths.values()), true, guess),
                "bleedless": bleedless,
                "fullness": fullness,
            },
        )


def _peass_scores(task: Task, stem: str) -> dict[str, float | None]:
    """PEASS of one stem against all other true stems of the song."""
    truths = {
        name: feed.take(task.frames).T.astype(float) for name, feed in task.song.truths(task.rate).items()
    }
    parts = true_parts(list(task.estimates), task.song.stems)[stem]
    true = np.sum([truths[name] for name in parts], axis=0)
    others = [signal for name, signal in truths.items() if name not in parts]
    guess = Feed(list(task.estimates[stem]), task.rate).take(task.frames).T.astype(float)
    everything = [true, guess, *others]
    if all(np.array_equal(signal[:, 0], signal[:, 1]) for signal in everything):  # mono: half the time
        true, guess, *others = (signal[:, :1] for signal in everything)
    return {
        f"peass_{name}": score for name, score in peass.peass_scores(true, others, guess, task.rate).items()
    }


def _whole_signals(
    task: Task, stems: Sequence[str]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """({stem: true signal}, {stem: estimate}), each (n, c) for the whole song; c is 1 if all are mono."""
    parts = true_parts(list(task.estimates), task.song.stems)
    feeds = task.song.truths(task.rate)
    read = {
        name: bsseval.round_to_16_bits(feeds[name].take(task.frames).T.astype(np.float64))
        for name in dict.fromkeys(name for stem in stems for name in parts[stem])
    }
    true = {stem: np.sum([read[name] for name in parts[stem]], axis=0) for stem in stems}
    estimates = {
        stem: Feed(list(task.estimates[stem]), task.rate).take(task.frames).T.astype(np.float64)
        for stem in stems
    }
    everything = (*true.values(), *estimates.values())
    if all(np.array_equal(signal[:, 0], signal[:, 1]) for signal in everything):
        return tuple({stem: signal[:, :1] for stem, signal in side.items()} for side in (true, estimates))  # type: ignore[return-value]
    return true, estimates
