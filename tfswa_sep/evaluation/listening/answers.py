"""The answers of a blind A/B test: which method listeners prefer, and with what certainty.

A preference is the share of answers in favour of a method; "no difference" counts as half an answer for each.
Its interval is Wilson's (1927), which also holds for few or unanimous answers, where a bootstrap has no width. The
sign test is exact and two-sided, over the answers that prefer one side. Both assume independent answers: many
excerpts are more informative than many answers about one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.compare import CONFIDENCE

MIN_ANSWERS = 6  # five unanimous answers still happen by chance one time in 16
TIE = "no difference"  # as the page writes it
ALL = "all"  # stems


@dataclass(frozen=True)
class Preference:
    """How one method fared on one stem, or on all of them."""

    stem: str
    method: str
    answers: int  # for this stem, of any kind
    better: int  # that prefer this method
    ties: int
    share: float  # from 0 to 1
    low: float  # the ends of its 95 % interval
    high: float
    p_value: float  # of the sign test: the same for both methods

    @property
    def verdict(self) -> str:
        """What may be claimed."""
        if self.answers < MIN_ANSWERS:
            return f"fewer than {MIN_ANSWERS} answers: no verdict"
        if self.low > 0.5:
            return "preferred"
        return "not preferred" if self.high < 0.5 else "no preference shown"


@dataclass(frozen=True)
class ListeningTest:
    """The answers of all listeners."""

    files: int
    unanswered: int
    preferences: tuple[Preference, ...]  # two per stem, then two for all stems where there are several


def read_answers(paths: Sequence[Path]) -> ListeningTest:
    """Analyse the files that listeners exported from the page of `tfswa-sep eval listen`.

    Raises:
        InputError: A file contains no answers.
        UsageError: The files are of different methods, one is named twice, or no question was answered.
    """
    methods: list[str] = []
    seen: dict[str, Path] = {}
    by_stem: dict[str, list[str]] = {}
    unanswered = 0
    for path in paths:
        names, answers, content = _read(path)
        if content in seen:
            raise UsageError(f"{seen[content]} and {path} contain the same answers: name each file once")
        seen[content] = path
        methods = methods or names
        if set(names) != set(methods):
            raise UsageError(
                f"{path} compares {' and '.join(names)}, but {paths[0]} {' and '.join(methods)}: "
                "analyse each test separately"
            )
        for trial, better in answers:
            if better is None:
                unanswered += 1
            else:
                by_stem.setdefault(trial.rpartition("/")[2], []).append(better)
    if not by_stem:
        raise UsageError("no question has been answered: there is nothing to analyse")
    groups = dict(sorted(by_stem.items()))
    if len(groups) > 1:
        groups[ALL] = [better for answers in groups.values() for better in answers]
    preferences = (
        _preference(stem, method, answers) for stem, answers in groups.items() for method in methods
    )
    return ListeningTest(len(paths), unanswered, tuple(preferences))


def _preference(stem: str, method: str, answers: Sequence[str]) -> Preference:
    better, ties = answers.count(method), answers.count(TIE)
    share = (better + ties / 2) / len(answers)
    low, high = wilson(share, len(answers))
    p_value = sign_test(better, len(answers) - ties - better)
    return Preference(stem, method, len(answers), better, ties, share, low, high, p_value)


def wilson(share: float, answers: int) -> tuple[float, float]:
    """The 95 % interval of a `share` (from 0 to 1) of `answers`."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    weight = 1 + z**2 / answers
    centre = (share + z**2 / (2 * answers)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / answers + z**2 / (4 * answers**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_test(first: int, second: int) -> float:
    """The two-sided probability of a split at least as uneven, if both sides were equally likely."""
    answers = first + second
    tail = sum(math.comb(answers, count) for count in range(min(first, second) + 1))
    return min(1.0, 2 * tail / float(2**answers))


def _read(path: Path) -> tuple[list[str], list[tuple[str, str | None]], str]:
    """(names of the two methods, [(trial, the better method, TIE or None)], the contents for comparison)."""
    try:
        record = json.loads(path.read_text("utf-8"))
        names = [str(name) for name in record["methods"]]
        answers = [(str(answer["trial"]), answer["better"]) for answer in record["answers"]]
        content = json.dumps([record["date"], record["answers"]])
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} contains no answers exported from a listening page") from error
    if len(names) != 2 or names[0] == names[1] or any(each not in (*names, TIE, None) for _, each in answers):
        raise InputError(f"{path} contains no answers exported from a listening page")
    return names, answers, content
