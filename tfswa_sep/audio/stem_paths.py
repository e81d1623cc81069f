"""The names of a song's stem files, and what they must not replace."""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Collection, Sequence
from pathlib import Path

from tfswa_sep.constants import NAME_TEMPLATE
from tfswa_sep.errors import OutputError, UsageError

_FIELDS = ("track", "stem", "ext")
_LONGEST_TRACK = 200  # bytes; file systems allow 255, and a stem's name may follow
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


def default_track_name(song: Path) -> str:
    """The name of a song in its stems' paths: its file's name without the extension.

    A name that Windows reserves, or would strip the end of, is altered, since files get copied between systems. One of
    more than 200 bytes is cut and gets a hash that distinguishes it from others.
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
    """The file of each stem.

    Args:
        song: The song's file.
        stems: Their names.
        out: The output folder.
        extension: Such as ".wav".
        template: Path below `out`, with {track}, {stem} and {ext}.
        track: None for default_track_name(song).
        keep: See check_target.

    Raises:
        UsageError: The template has another field, leaves `out`, or gives two stems the same path.
        OutputError: A stem would overwrite a song.
    """
    _check_template(template)
    targets: dict[str, Path] = {}
    for stem in stems:
        name = template.format(track=track or default_track_name(song), stem=stem, ext=extension)
        outside = Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name
        if not name or name.endswith(("/", os.sep)) or outside:
            raise UsageError(
                f"the name template '{template}' points outside the output folder ({name}): change --name"
            )
        path = out / name
        if path in targets.values():
            raise UsageError(
                f"the name template '{template}' gives two stems the same file ({path}): add {{stem}} to it"
            )
        check_target(path, song, keep)
        targets[stem] = path
    return targets


def check_target(path: Path, song: Path, keep: Collection[str]) -> None:
    """Raise OutputError if writing `path` would overwrite `song` or one of `keep` (real paths)."""
    target = os.path.realpath(path)
    itself = target == os.path.realpath(song)
    if itself or target in keep:
        what = "the song itself" if itself else "another song"
        raise OutputError(f"a stem of {song} would overwrite {what} ({path}): choose another --out or --name")


def song_folder(template: str, track: str) -> Path:
    """The folder that contains all stems of a song, directly or in subfolders, in any format."""
    parts = Path(template).parts[:-1]
    differing = [index for index, part in enumerate(parts) if "{stem}" in part or "{ext}" in part]
    return Path(*(part.format(track=track) for part in parts[: min(differing, default=len(parts))]))


def _check_template(template: str) -> None:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"the name template '{template}' is invalid: {error}") from None
    for _, field, specification, conversion in parts:
        if field is not None and (field not in _FIELDS or specification or conversion):
            raise UsageError(f"the name template '{template}' may use only {{track}}, {{stem}} and {{ext}}")
