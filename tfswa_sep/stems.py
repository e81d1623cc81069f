"""Which stems are asked for, and what their files are called."""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import OutputError, UsageError

ACCOMPANIMENT = "accompaniment"  # everything but the vocals
VOCALS = "vocals"
NAME_TEMPLATE = "{track}/{stem}{ext}"
_FIELDS = ("track", "stem", "ext")
_LONGEST_TRACK = 200  # bytes; file systems end at 255, and a stem's name may stand behind it
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


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


def track_name(song: Path) -> str:
    """What a song is called in its stems' names: its file's name without the extension.

    A name that Windows keeps for a device, or of which it would drop the end, is altered, since files move
    about. One of more than 200 bytes is cut, and a hash tells it from others.
    """
    name = song.stem.rstrip(". ") or "_"
    if name.partition(".")[0].upper() in _RESERVED:
        name = f"_{name}"
    data = os.fsencode(name)
    if len(data) > _LONGEST_TRACK:
        digest = hashlib.sha256(data).hexdigest()[:8]
        name = f"{data[: _LONGEST_TRACK - 9].decode('utf-8', errors='ignore')}~{digest}"
    return name


def target_paths(
    song: Path,
    stems: Sequence[str],
    *,
    out: Path,
    extension: str,
    template: str = NAME_TEMPLATE,
    track: str | None = None,
    keep: Collection[str] = (),
) -> dict[str, Path]:
    """Stem -> file under `out`, from a template of {track}, {stem} and {ext} (".wav").

    track: None for track_name(song).  keep: see check_target.
    Raises UsageError for another field, a path that leaves `out`, or one path for two stems; OutputError for
    the path of a song.
    """
    _check_template(template)
    targets: dict[str, Path] = {}
    for stem in stems:
        name = template.format(track=track or track_name(song), stem=stem, ext=extension)
        outside = Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name
        if not name or name.endswith(("/", os.sep)) or outside:
            raise UsageError(
                f"the name template '{template}' leads outside the output folder ({name}): change --name"
            )
        path = out / name
        if path in targets.values():
            raise UsageError(
                f"the name template '{template}' gives two stems one file ({path}): use {{stem}} in it"
            )
        check_target(path, song, keep)
        targets[stem] = path
    return targets


def check_target(path: Path, song: Path, keep: Collection[str]) -> None:
    """Raise OutputError if `path`, made of `song`, would replace it or one of `keep` (real paths)."""
    target = os.path.realpath(path)
    itself = target == os.path.realpath(song)
    if itself or target in keep:
        what = "the song itself" if itself else "another song"
        raise OutputError(f"a stem of {song} would overwrite {what} ({path}): choose another --out or --name")


def folder_of(template: str, track: str) -> Path:
    """The folder that all stems of a song lie in or below, whatever the format they are written in."""
    parts = Path(template).parts[:-1]
    differing = [index for index, part in enumerate(parts) if "{stem}" in part or "{ext}" in part]
    return Path(*(part.format(track=track) for part in parts[: min(differing, default=len(parts))]))


def _check_template(template: str) -> None:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the name template '{template}' cannot be understood: {error}") from None
    for _, field, specification, conversion in parts:
        if field is not None and (field not in _FIELDS or specification or conversion):
            raise UsageError(f"the name template '{template}' may use only {{track}}, {{stem}} and {{ext}}")
