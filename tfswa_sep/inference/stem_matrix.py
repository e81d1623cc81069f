"""Which stems are asked for, as sums of those that a model has, or as the song minus some of them.

Axis letters: s stem of the model, k stem asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import ACCOMPANIMENT, INSTRUMENTAL, OTHER, STEMS, VOCALS
from tfswa_sep.errors import UsageError

WITHOUT = "no_"  # "no_drums" is everything but the drums
_MEANT = {"karaoke": ACCOMPANIMENT, "backing": ACCOMPANIMENT, "music": ACCOMPANIMENT, "voice": VOCALS}
_UNNAMED = ""  # the part of a song that no stem of a model names


def parse_stems(
    request: str | Sequence[str] | None, available: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Parse a choice of stems: names, "accompaniment", "no_drums", and sums such as "drums+bass"; None means all.

    A stem that the model does not output is the song minus those that it does, where that is what remains: a
    model of vocals alone has an accompaniment. "instrumental" is another word for it.

    Args:
        request: Expressions separated by commas, or a list of such.
        available: The model's s stems, which may be sums themselves.

    Returns:
        k names, in the order asked for and each once, and the (k, s + 1) matrix that makes them from the
        model's stems and, in the last column, the song.

    Raises:
        UsageError: A stem is unknown (the message names the choices), or the choice is empty.
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
        row = _combine(terms, available)
        if row is None:
            whole = _whole(available)
            unknown = next((term for term in terms if not _parts(term, whole)), "+".join(terms))
            raise UsageError(
                f"unknown stem '{unknown}': {_suggestion(unknown, available)}{_choices(available)}"
            )
        if frozenset(terms) not in seen:
            seen.add(frozenset(terms))
            rows["+".join(terms)] = row
    if not rows:
        raise UsageError(f"no stem was selected: {_choices(available)}")
    return tuple(rows), np.stack(list(rows.values()))


def with_accompaniment(available: Sequence[str]) -> tuple[str, ...]:
    """The stems of a model, and the accompaniment where it can be made of them and the song."""
    named = {ACCOMPANIMENT, INSTRUMENTAL} & set(available)
    if named or _combine([ACCOMPANIMENT], available) is None:
        return tuple(available)
    return (*available, ACCOMPANIMENT)


def make_up_song(mix: NDArray[np.float32], available: Sequence[str]) -> bool:
    """Whether the stems of a matrix of `parse_stems` are the whole song, each part of it once."""
    total, whole = mix.sum(axis=0), _whole(available)
    parts = [part for stem in available for part in _parts(stem, whole)]
    complete = len(parts) == len(whole) and set(parts) == whole
    stems, song = set(total[:-1].tolist()), float(total[-1])
    return (stems, song) == ({0.0}, 1.0) or (complete and (stems, song) == ({1.0}, 0.0))


def _combine(terms: Sequence[str], available: Sequence[str]) -> NDArray[np.float32] | None:
    """The row of `parse_stems` for a sum of terms; None where neither it nor its opposite can be made."""
    whole = _whole(available)
    parts = [_parts(term, whole) for term in terms]
    if not all(parts):
        return None
    wanted = frozenset[str]().union(*parts)
    row = np.zeros(len(available) + 1, dtype=np.float32)
    if (chosen := _cover(wanted, available, whole)) is not None:
        row[chosen] = 1
    elif (chosen := _cover(whole - wanted, available, whole)) is not None:
        row[chosen] = -1
        row[-1] = 1
    else:
        return None
    return row


def _whole(available: Sequence[str]) -> frozenset[str]:
    """All parts that a song has, as far as a model's stems tell; _UNNAMED if they may not be all."""
    named = {part for stem in available for part in stem.split("+")} - {ACCOMPANIMENT, INSTRUMENTAL}
    if named <= set(STEMS):
        return frozenset(STEMS)
    return frozenset(named if OTHER in named else {*named, _UNNAMED})


def _parts(expression: str, whole: frozenset[str]) -> frozenset[str]:
    """The parts that a stem or a sum is made of; none for an unknown one."""
    found: set[str] = set()
    for term in expression.split("+"):
        if term in (ACCOMPANIMENT, INSTRUMENTAL) and VOCALS in whole:
            found |= whole - {VOCALS}
        elif term in whole - {_UNNAMED}:
            found.add(term)
        elif term.startswith(WITHOUT) and term.removeprefix(WITHOUT) in whole - {_UNNAMED}:
            found |= whole - {term.removeprefix(WITHOUT)}
        else:
            return frozenset()
    return frozenset(found)


def _cover(wanted: frozenset[str], available: Sequence[str], whole: frozenset[str]) -> list[int] | None:
    """Which of the stems sum to these parts, the largest first; None for none."""
    parts = [_parts(stem, whole) for stem in available]
    chosen, left = list[int](), set(wanted)
    for index in sorted(range(len(parts)), key=lambda index: -len(parts[index])):
        if parts[index] and parts[index] <= left:
            chosen.append(index)
            left -= parts[index]
    return None if left else chosen


def _suggestion(unknown: str, available: Sequence[str]) -> str:
    names = with_accompaniment(available)
    near = [_MEANT.get(unknown, ""), *difflib.get_close_matches(unknown, names, n=1)]
    meant = next((name for name in near if name in names), "")
    return f"did you mean {meant}? Else " if meant else ""


def _choices(available: Sequence[str]) -> str:
    names = with_accompaniment(available)
    example = f", or a sum such as {'+'.join(available[:2])}" if len(available) > 1 else ""
    return f"choose from {', '.join(names)}{example}"
