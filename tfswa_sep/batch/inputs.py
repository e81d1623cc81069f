"""The songs that a command line means: files, folders, patterns, and the standard input."""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfswa_sep.batch.manifest import outputs_in
from tfswa_sep.errors import InputError, OutputError

STDIN = "-"
STDIN_NAME = "standard input"
# What is taken for a song in a folder. A file that is named is tried whatever its name.
_EXTENSIONS = (
    ".aac .ac3 .aif .aifc .aiff .alac .ape .au .avi .caf .dts .flac .flv .m4a .m4b .m4v .mka .mkv .mov .mp2 "
    ".mp3 .mp4 .mpeg .mpg .oga .ogg .opus .rf64 .tta .w64 .wav .wave .webm .wma .wmv .wv "
)


@dataclass(frozen=True)
class FoundSong:
    """A song that was named, or found."""

    path: Path
    folder: Path = Path()  # where it lies below the folder that was named; its stems go to the same place
    notes: tuple[str, ...] = ()  # what its owner should know, one line each


def find_songs(arguments: Sequence[str], *, recursive: bool) -> list[FoundSong]:
    """What the arguments mean, in their order; folders are sorted, patterns expanded where no shell did it.

    recursive: look into folders of folders too.
    A name that is not there is handed on as it is. Stems that an earlier run wrote are no songs.
    Raises InputError for a folder without songs or that cannot be opened, and a pattern that fits nothing.
    """
    found: list[FoundSong] = []
    for argument in arguments:
        if "\0" in argument:
            raise InputError(f"no such file: {argument} (file names cannot contain a null character)")
        path = Path(argument) if argument == STDIN else _file(argument)
        if argument != STDIN and os.path.isdir(path):  # a Path raises for names that are too long
            songs = _in_folder(path, recursive=recursive)
            if not songs:
                hint = "" if recursive else ": use --recursive to search its subfolders"
                raise InputError(f"no songs in the folder {path}{hint}")
            found += songs
        elif argument != STDIN and not os.path.lexists(path) and glob.has_magic(argument):
            songs = _matching(argument, recursive=recursive)
            if not songs:
                raise InputError(f"no songs match {argument}: check the pattern")
            found += songs
        else:
            found.append(FoundSong(path))
    return found


def _file(name: str) -> Path:
    path = Path(name)
    return path.absolute() if str(path) == STDIN else path  # of ./- a Path would drop the dot


def _matching(pattern: str, *, recursive: bool) -> list[FoundSong]:
    found: list[FoundSong] = []
    for path in sorted(_file(match) for match in glob.glob(pattern, recursive=True)):
        if path.is_dir():
            found += _in_folder(path, recursive=recursive)
        elif path.is_file():
            found.append(FoundSong(path))
    return found


def _in_folder(folder: Path, *, recursive: bool) -> list[FoundSong]:
    songs: list[Path] = []
    ours: set[Path] = set()
    notes: list[str] = []

    def cannot_list(error: OSError) -> None:
        text = f"{error.filename} cannot be opened: {error.strerror}"
        if error.filename == str(folder):
            raise InputError(text) from None
        notes.append(f"{text}; its files were skipped")

    for place, folders, names in os.walk(folder, onerror=cannot_list):
        here = Path(place)
        ours |= outputs_in(here)
        songs += [here / name for name in names if _looks_like_a_song(name)]
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
    songs = sorted(song for song in songs if song not in ours)
    return [
        FoundSong(song, song.parent.relative_to(folder), () if number else tuple(notes))  # told once
        for number, song in enumerate(songs)
    ]


def _looks_like_a_song(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() + " " in _EXTENSIONS


def save_stdin(folder: Path) -> Path:
    """Copy what comes on the standard input to a file in `folder`: decoders go back and forth in it.

    Raises InputError if nothing comes, and OutputError if the disk is full.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("- reads a song from stdin: pipe one into it")
    path = folder / "stdin"
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    except OSError as error:
        raise OutputError(f"cannot save stdin to {folder} ({error.strerror})") from None
    if not path.stat().st_size:
        raise InputError("stdin is empty (0 bytes): pipe a song into it")
    return path


def parse_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of "i/n", counted from 1; None is the only one of one. Raises ValueError."""
    number, slash, count = (text or "1/1").partition("/")
    if not slash or not 1 <= int(number) <= int(count):
        raise ValueError
    return int(number), int(count)


def unique(songs: Sequence[FoundSong]) -> Iterator[FoundSong]:
    """Each file once, however often and by whatever path it was named."""
    seen: set[str] = set()
    for song in songs:
        resolved = os.path.realpath(song.path)  # a Path raises for links that lead to themselves
        if resolved not in seen:
            seen.add(resolved)
            yield song
