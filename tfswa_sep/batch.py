"""Several songs in one go: no two of them write the same files, and what is said of each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfswa_sep.errors import InputError, UsageError

if TYPE_CHECKING:
    from tfswa_sep.separator import SeparationResult


@dataclass(frozen=True)
class PlannedSong:
    """A song of a batch."""

    path: Path
    pattern: str  # of its files' names, see stems.target_paths
    notes: tuple[str, ...]  # what its owner should know, one line each


def plan_songs(songs: Sequence[Path], pattern: str) -> list[PlannedSong]:
    """Each song once, with names for its files that no other song has: a second `song` becomes `song_2`.

    Raises UsageError for several songs and a pattern without {track}.
    """
    planned: dict[Path, PlannedSong] = {}
    taken: set[str] = set()
    for song in songs:
        if song.resolve() in planned:
            continue
        track, number = song.stem, 1
        while track.casefold() in taken:  # casefold: so do the file systems of macOS and Windows
            number += 1
            track = f"{song.stem}_{number}"
        taken.add(track.casefold())
        if number == 1:
            planned[song.resolve()] = PlannedSong(song, pattern, ())
        else:
            literal = pattern.replace("{track}", track.replace("{", "{{").replace("}", "}}"))
            note = f"{song} has the name of another song: its files are named {track}"
            planned[song.resolve()] = PlannedSong(song, literal, (note,))
    if len(planned) > 1 and "{track}" not in pattern:
        raise UsageError("with several songs --name needs {track}, or one would overwrite the other")
    return list(planned.values())


def check_song(song: Path, commands: Sequence[str]) -> None:
    """Raise InputError for a song that is not there, with a hint where it looks like one of `commands`."""
    if song.exists():
        return
    near = difflib.get_close_matches(str(song), commands, n=1, cutoff=0.7)
    hint = f" (is the command {near[0]!r} meant? commands come first)" if near else ""
    raise InputError(f"no such file: {song}{hint}")


def describe(song: PlannedSong, result: SeparationResult) -> dict[str, Any]:
    """A separated song as an object for JSON."""
    described = {"song": str(song.path), **asdict(result), "warnings": [*song.notes, *result.warnings]}
    described["files"] = {stem: str(path) for stem, path in result.files.items()}
    return described
