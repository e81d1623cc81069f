"""Is the difference between two methods real, or noise? Paired differences over the songs scored by both.

The interval is the percentile bootstrap of the mean difference (Efron and Tibshirani 1993, chapter 13): songs
are drawn with replacement, each with all of its scores, and the middle 95 % of the means kept.
With few songs that interval is too narrow, so nothing is claimed below MIN_SONGS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import ACCOMPANIMENT
from tfswa_sep.errors import UsageError
from tfswa_sep.evaluation.results import BASELINE, LABELS, Evaluation, MethodScores, read_evaluation

DRAWS = 10_000
CONFIDENCE = 0.95
SEED = 0
SAME_SECONDS = 1.0  # two copies of a song differ in length by less: codecs pad by some milliseconds
MEAN = "mean"  # over the stems, without the accompaniment
UNCLEAR = "unclear"
MIN_SONGS = 6  # with 5, all differences have the same sign by chance one time in 16


@dataclass(frozen=True)
class Difference:
    """One stem: how much better the second method is."""

    stem: str  # or MEAN
    metric: str
    first: str  # name of the method
    second: str
    songs: int  # that both have scores for
    mean_first: float  # dB
    mean_second: float  # dB
    difference: float  # mean of second - first, dB
    low: float | None  # ends of its confidence interval; None for a single song
    high: float | None
    second_better_in: int  # songs

    @property
    def short_verdict(self) -> str:
        """How the second method does: "better", "worse", UNCLEAR, or "-" for too few songs."""
        if self.songs < MIN_SONGS or self.low is None or self.high is None:
            return "-"
        return "better" if self.low > 0 else "worse" if self.high < 0 else UNCLEAR

    @property
    def verdict(self) -> str:
        """What may be claimed."""
        return {
            "better": f"{self.second} is better",
            "worse": f"{self.first} is better",
            UNCLEAR: "no difference shown",
            "-": f"fewer than {MIN_SONGS} songs: no verdict",
        }[self.short_verdict]


@dataclass(frozen=True)
class Comparison:
    """All differences, and reasons to doubt them."""

    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


def compare_records(records: Sequence[Path], *, metric: str | None = None) -> Comparison:
    """Compare every method with the first one, for each stem and for the mean of the stems.

    Baselines are compared only where there is nothing else. Songs are matched by name, whatever their folder.

    Args:
        records: Files that `tfswa-sep eval --json` wrote.
        metric: A key of results.LABELS; None means museval's SDR where all have it, else the global SDR.

    Raises:
        InputError: A file is not such a record.
        UsageError: There is nothing to compare.
    """
    evaluations = [read_evaluation(path) for path in records]
    methods = _methods(records, evaluations)
    if metric is None:
        official = all("museval_sdr" in method.metrics for method in methods)
        metric = "museval_sdr" if official else "sdr"
    if metric not in LABELS or not any(metric in method.metrics for method in methods):
        known = sorted({name for method in methods for name in method.metrics})
        raise UsageError(f"no record has {metric!r}: choose from {', '.join(known)}")
    first, *others = methods
    differences = []
    for other in others:
        alone = {stem: _difference(first, other, [stem], metric) for stem in first.stems}
        shared = [stem for stem, each in alone.items() if each is not None and stem != ACCOMPANIMENT]
        together = _difference(first, other, shared, metric) if len(shared) > 1 else None
        differences += [each for each in (*alone.values(), together) if each is not None]
    if not differences:
        scored, *others_scored = (
            {song.song for song in method.songs if not song.apart} for method in methods
        )
        if any(scored & songs for songs in others_scored):
            raise UsageError(
                f"no stem has a {metric!r} from both methods (silent stems have none, nor does a perfect estimate): "
                "name another --metric"
            )
        raise UsageError("the records have no song in common: score both on the same songs")
    warnings = [warning for other in others for warning in _mismatches(first, other)]
    return Comparison(tuple(differences), tuple(warnings))


def _mismatches(first: MethodScores, second: MethodScores) -> list[str]:
    """In which songs the two records differ."""
    one, two = ({song.song: song.seconds for song in method.songs} for method in (first, second))
    common = one.keys() & two.keys()
    lines = []
    if one.keys() != two.keys():
        lines.append(
            f"the songs differ: {len(common)} are in both records and are compared; {len(one) - len(common)} "
            f"only in {first.name}, {len(two) - len(common)} only in {second.name}"
        )
    if longer := sorted(song for song in common if abs(one[song] - two[song]) > SAME_SECONDS):
        lines.append(
            f"{longer[0]!r} lasts {one[longer[0]]:.0f} s in {first.name} and {two[longer[0]]:.0f} s in "
            f"{second.name} ({len(longer)} such songs): are these the same recordings?"
        )
    return lines


def _methods(records: Sequence[Path], evaluations: Sequence[Evaluation]) -> list[MethodScores]:
    methods = []
    for path, evaluation in zip(records, evaluations, strict=True):
        real = [method for method in evaluation.methods if method.kind != BASELINE]
        for method in real or evaluation.methods:
            named = MethodScores(f"{method.name} ({path.name})", method.kind, method.songs)
            methods.append(named if len(records) > 1 else method)
    if len(methods) < 2:
        raise UsageError("there is only one method: name a second record")
    return methods


def _difference(
    first: MethodScores, second: MethodScores, stems: Sequence[str], metric: str
) -> Difference | None:
    """Difference in one stem, or in the mean of several; None where no song has both scores."""
    songs = sorted({song.song for song in first.songs} & {song.song for song in second.songs})
    if not songs:
        return None
    one, two = first.matrix(stems, metric, songs), second.matrix(stems, metric, songs)
    scored = ~np.isnan(two - one).all(axis=1)
    one, two = one[scored], two[scored]
    gaps = two - one
    if not len(gaps):
        return None
    low, high = bootstrap(gaps) if len(gaps) > 1 else (None, None)
    return Difference(
        stem=stems[0] if len(stems) == 1 else MEAN,
        metric=metric,
        first=first.name,
        second=second.name,
        songs=len(gaps),
        mean_first=mean_of_stems(np.where(np.isnan(gaps), np.nan, one)),
        mean_second=mean_of_stems(np.where(np.isnan(gaps), np.nan, two)),
        difference=mean_of_stems(gaps),
        low=low,
        high=high,
        second_better_in=int((np.nanmean(gaps, axis=1) > 0).sum()),
    )


def mean_of_stems(values: NDArray[np.float64]) -> float:
    """The mean over the stems of each stem's mean over the songs that have it; `values` as in `bootstrap`."""
    return float(np.mean(np.nanmean(values.reshape(len(values), -1), axis=0)))


def bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """The confidence interval of `mean_of_stems`.

    Args:
        values: (songs,) or (songs, stems); NaN where a song lacks a stem.
    """
    table = values.reshape(len(values), -1)
    table = table[~np.isnan(table).all(axis=1)]
    defined = ~np.isnan(table)
    songs = len(table)
    counts = np.random.default_rng(SEED).multinomial(songs, [1 / songs] * songs, DRAWS).astype(float)
    with np.errstate(invalid="ignore"):  # a stem that none of the drawn songs has
        means = (counts @ np.where(defined, table, 0)) / (counts @ defined)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.nanmean(means, axis=1), (tail, 1 - tail))
    return float(low), float(high)
