"""Which stems are asked for, as sums of those that a model has.

Axis letters: s stem of the model, k stem asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import ACCOMPANIMENT, VOCALS
from tfswa_sep.errors import UsageError


def parse_stems(
    request: str | Sequence[str] | None, available: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Understand a choice of stems: names, "accompaniment", and sums such as "drums+bass"; None means all.

    request: expressions separated by commas, or a list of such.  available: the model's s stems.
    Returns k names, in the order asked for and each once, and the (k, s) matrix of zeros and ones that makes
    them from the model's stems.
    Raises UsageError for an unknown stem, naming the choices, and for an empty choice.
    """
    if request is None:
        request = list(available)
    expressions = [
        part for text in ([request] if isinstance(request, str) else request) for part in text.split(",")
    ]
    rows: dict[str, NDArray[np.float32]] = {}
    seen: set[frozenset[str]] = set()
    for expression in expressions:
        terms = list(dict.fromkeys(term.strip().lower() for term in expression.split("+")))
        if terms == [""]:
            continue  # a trailing comma
        row = np.zeros(len(available), dtype=np.float32)
        for term in terms:
            row[_find_stem(term, available)] = 1
        if frozenset(terms) not in seen:
            seen.add(frozenset(terms))
            rows["+".join(terms)] = row
    if not rows:
        raise UsageError(f"no stem was asked for: {_choices(available)}")
    return tuple(rows), np.stack(list(rows.values()))


def _find_stem(term: str, available: Sequence[str]) -> list[int]:
    if term in available:
        return [available.index(term)]
    if term == ACCOMPANIMENT and VOCALS in available:
        return [index for index, stem in enumerate(available) if stem != VOCALS]
    raise UsageError(f"unknown stem '{term}': {_choices(available)}")


def _choices(available: Sequence[str]) -> str:
    names = [*available, ACCOMPANIMENT] if VOCALS in available else list(available)
    return f"choose from {', '.join(names)}, or a sum such as {'+'.join(available[:2])}"
