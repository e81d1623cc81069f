"""The requested stems, as sums of a model's stems or as the song minus some of them.

Axis letters: s model stem, k requested stem.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import ACCOMPANIMENT, INSTRUMENTAL, OTHER, STEMS, VOCALS
from tfswa_sep.errors import UsageError

WITHOUT = "no_"  # "no_drums" is everything but the drums
_SYNONYMS = {"karaoke": ACCOMPANIMENT, "backing": ACCOMPANIMENT, "music": ACCOMPANIMENT, "voice": VOCALS}
_UNNAMED = ""  # the rest of a song, for which a model has no stem


def parse_stems(
    request: str | Sequence[str] | None, available: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Parse a choice of stems: names, "accompaniment", "no_drums", and sums such as "drums+bass".

    A stem that the model lacks can also be the song minus the model's stems: a model of vocals alone gives an
    accompaniment, also called "instrumental".

    Args:
        request: Expressions separated by commas, or a list of such; None for all of the model's stems.
        available: The model's s stems, which may be sums themselves.

    Returns:
        k names, in the requested order without repetitions, and the (k, s + 1) matrix that makes them from the
        model's stems and, in the last column, the song.

    Raises:
        UsageError: A stem is unknown, or none is requested.
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
            song = _song_parts(available)
            unknown = next((term for term in terms if not _parts(term, song)), "+".join(terms))
            raise UsageError(
                f"unknown stem '{unknown}'{_suggestion(unknown, available)}: {_choices(available)}"
            )
        if frozenset(terms) not in seen:
            seen.add(frozenset(terms))
            rows["+".join(terms)] = row
    if not rows:
        raise UsageError(f"no stem was selected: {_choices(available)}")
    return tuple(rows), np.stack(list(rows.values()))


def row_like(name: str, available: Sequence[str], others: Sequence[str]) -> NDArray[np.float32] | None:
    """The row of `parse_stems` that makes the same sound from another model's stems.

    To a model without a guitar, "other" includes it: so "other" of four stems is the sum of "other", guitar and piano
    of six, but none of four is "other" of six.

    Args:
        name: A stem or sum, from `parse_stems`.
        available: The stems of the model that it was parsed for.
        others: The other model's stems.

    Returns:
        (s + 1,), or None if the other model cannot make it.
    """
    song, other_song = _song_parts(available), _song_parts(others)
    parts = frozenset[str]().union(*(_parts(term, song) for term in name.split("+")))
    rest = song - parts
    if OTHER not in parts:
        return _combine_parts(parts, others) if parts <= other_song else None
    return _combine_parts(other_song - rest, others) if rest <= other_song else None


def with_accompaniment(available: Sequence[str]) -> tuple[str, ...]:
    """A model's stems, and the accompaniment if it can be made from them and the song."""
    named = {ACCOMPANIMENT, INSTRUMENTAL} & set(available)
    if named or _combine([ACCOMPANIMENT], available) is None:
        return tuple(available)
    return (*available, ACCOMPANIMENT)


def adds_up_to_song(stem_matrix: NDArray[np.float32], available: Sequence[str]) -> bool:
    """Whether the stems of a matrix from `parse_stems` contain each part of the song exactly once."""
    total, song = stem_matrix.sum(axis=0), _song_parts(available)
    parts = [part for stem in available for part in _parts(stem, song)]
    model_covers_song = len(parts) == len(song) and set(parts) == song
    weights = set(total[:-1].tolist()), float(total[-1])  # of the model's stems, and of the song
    return weights == ({0.0}, 1.0) or (model_covers_song and weights == ({1.0}, 0.0))


def shares_of_rest(stem_matrix: NDArray[np.float32], available: Sequence[str]) -> NDArray[np.float32]:
    """How much each stem of a matrix of `parse_stems` has, (k,), of sound that the model cannot hear.

    Such sound, as that above half the model's sample rate, belongs to the stem that holds `other`.
    """
    song = _song_parts(available)
    holders = [index for index, stem in enumerate(available) if OTHER in _parts(stem, song)]
    shares: NDArray[np.float32] = stem_matrix[:, [*holders, -1]].sum(axis=1)
    return shares


def _combine(terms: Sequence[str], available: Sequence[str]) -> NDArray[np.float32] | None:
    """The row of `parse_stems` for a sum of terms; None if neither it nor the rest of the song can be made."""
    song = _song_parts(available)
    parts = [_parts(term, song) for term in terms]
    if not all(parts):
        return None
    return _combine_parts(frozenset[str]().union(*parts), available)


def _combine_parts(requested: frozenset[str], available: Sequence[str]) -> NDArray[np.float32] | None:
    """The row of `parse_stems` for parts of the song; None if neither they nor the rest can be made."""
    song = _song_parts(available)
    row = np.zeros(len(available) + 1, dtype=np.float32)
    if (chosen := _cover(requested, available, song)) is not None:
        row[chosen] = 1
    elif (chosen := _cover(song - requested, available, song)) is not None:
        row[chosen] = -1
        row[-1] = 1
    else:
        return None
    return row


def _song_parts(available: Sequence[str]) -> frozenset[str]:
    """All parts of a song that a model's stems imply, with _UNNAMED if there may be more."""
    named = {part for stem in available for part in stem.split("+")} - {ACCOMPANIMENT, INSTRUMENTAL}
    named -= {WITHOUT + part for part in named}  # such as no_drums beside drums
    if named <= set(STEMS):
        return frozenset(STEMS)
    return frozenset(named if OTHER in named else {*named, _UNNAMED})


def _parts(expression: str, song: frozenset[str]) -> frozenset[str]:
    """The parts of a stem or a sum of stems; empty for an unknown one."""
    parts: set[str] = set()
    for term in expression.split("+"):
        if term in (ACCOMPANIMENT, INSTRUMENTAL) and VOCALS in song:
            parts |= song - {VOCALS}
        elif term in song - {_UNNAMED}:
            parts.add(term)
        elif term.startswith(WITHOUT) and term.removeprefix(WITHOUT) in song - {_UNNAMED}:
            parts |= song - {term.removeprefix(WITHOUT)}
        else:
            return frozenset()
    return frozenset(parts)


def _cover(requested: frozenset[str], available: Sequence[str], song: frozenset[str]) -> list[int] | None:
    """Indices of the stems that sum to the requested parts, the largest first; None if there are none."""
    parts = [_parts(stem, song) for stem in available]
    chosen, left = list[int](), set(requested)
    for index in sorted(range(len(parts)), key=lambda index: -len(parts[index])):
        if parts[index] and parts[index] <= left:
            chosen.append(index)
            left -= parts[index]
    return None if left else chosen


def _suggestion(unknown: str, available: Sequence[str]) -> str:
    names = with_accompaniment(available)
    candidates = [_SYNONYMS.get(unknown, ""), *difflib.get_close_matches(unknown, names, n=1)]
    suggestion = next((name for name in candidates if name in names), "")
    return f" (did you mean {suggestion}?)" if suggestion else ""


def _choices(available: Sequence[str]) -> str:
    names = with_accompaniment(available)
    example = f", or a sum such as {'+'.join(available[:2])}" if len(available) > 1 else ""
    return f"choose from {', '.join(names)}{example}"
