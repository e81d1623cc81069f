"""The songs that a command line names: files, folders, patterns, and standard input."""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfswa_sep.batch.manifest import outputs_in
from tfswa_sep.errors import InputError, OutputError, UsageError, advice

STDIN = "-"
STDIN_NAME = "standard input"
# Files in a folder with these extensions count as songs. A file named explicitly is tried whatever its
# extension.
_EXTENSIONS = (
    ".3g2 .3gp .aac .ac3 .aif .aifc .aiff .alac .amr .ape .au .avi .caf .dff .dsf .dts .eac3 .flac .flv .m2ts "
    ".m4a .m4b .m4r .m4v .mka .mkv .mov .mp1 .mp2 .mp3 .mp4 .mpc .mpeg .mpg .mts .oga .ogg .ogv .opus .rf64 .snd "
    ".spx .tak .ts .tta .vob .w64 .wav .wave .weba .webm .wma .wmv .wv"
)
SONG_EXTENSIONS = frozenset(_EXTENSIONS.split())


@dataclass(frozen=True)
class FoundSong:
    """A song that was named, or found in a named folder."""

    path: Path
    folder: Path = Path()  # relative to the folder that was named; the stems go to the same place below --out
    notes: tuple[str, ...] = ()  # for the user, one line each
    problem: str = ""  # why it cannot be separated, if already known


def find_songs(arguments: Sequence[str], *, recursive: bool) -> list[FoundSong]:
    """Find the songs that the arguments name, in their order.

    Folders are sorted, and patterns expanded where no shell has done it. Stems that an earlier run wrote are
    not songs. A file that does not exist is returned like any other.

    Args:
        arguments: Files, folders, patterns, or - for standard input.
        recursive: Search subfolders, too.

    Returns:
        The songs; also a folder below a named one that cannot be opened, with a `problem`.

    Raises:
        UsageError: An empty name.
        InputError: A folder without songs or that cannot be opened, a pattern without matches, or an address.
    """
    songs: list[FoundSong] = []
    for argument in arguments:
        _check_name(argument)
        path = Path(argument) if argument == STDIN else _file(argument)
        if argument != STDIN and os.path.isdir(path):  # a Path raises for names that are too long
            in_folder = _in_folder(path, recursive=recursive)
            if not in_folder:
                raise InputError(_no_songs(path, recursive=recursive, alone=len(arguments) == 1))
            songs += in_folder
        elif argument != STDIN and not os.path.lexists(path) and glob.has_magic(argument):
            matching = _matching(argument, recursive=recursive)
            if not matching:
                raise InputError(f"no songs match {argument}: check the pattern")
            songs += matching
        else:
            songs.append(FoundSong(path))
    return songs


def _check_name(argument: str) -> None:
    if not argument.strip():
        raise UsageError("the name of a song is empty: name a file, or . for the current folder")
    if "\0" in argument:
        raise InputError(f"no such file: {argument} (file names cannot contain a null character)")
    scheme = argument.partition("://")[0]
    if scheme != argument and scheme.isalnum() and len(scheme) > 1 and not os.path.lexists(argument):
        raise InputError(f"{argument} is a URL, not a file: download it first")


def _file(name: str) -> Path:
    path = Path(name)
    return path.absolute() if str(path) == STDIN else path  # of ./- a Path would drop the dot


def _matching(pattern: str, *, recursive: bool) -> list[FoundSong]:
    songs: list[FoundSong] = []
    for path in sorted(_file(match) for match in glob.glob(pattern, recursive=True)):
        if path.is_dir():
            songs += _in_folder(path, recursive=recursive)
        elif path.is_file():
            songs.append(FoundSong(path))
    return songs


def _in_folder(folder: Path, *, recursive: bool) -> list[FoundSong]:
    songs: list[Path] = []
    stems: set[Path] = set()
    ignored = Counter[str]()  # extension -> files
    problems: dict[Path, str] = {}

    def report(error: OSError) -> None:
        problems[Path(error.filename)] = f"{error.filename} cannot be opened: {error.strerror}"

    for place, names in _walk(folder, recursive=recursive, on_error=report):
        stems |= outputs_in(place)
        for name in names:
            extension = Path(name).suffix.lower()
            if extension in SONG_EXTENSIONS:
                songs.append(place / name)
            else:
                ignored[extension or "without extension"] += 1
    if folder in problems:
        raise InputError(problems[folder])
    songs = sorted(song for song in songs if song not in stems)
    note = _describe_ignored(folder, ignored)
    return [
        FoundSong(path, path.parent.relative_to(folder), (note,) if note and not number else (), problem)
        for number, (path, problem) in enumerate([*((song, "") for song in songs), *sorted(problems.items())])
    ]


def _no_songs(folder: Path, *, recursive: bool, alone: bool) -> str:
    text = f"no songs in the folder {folder}"
    names = os.listdir(folder)
    if not names and not alone:
        return f"{text}: to write the stems there, use --out {folder}"
    if not recursive and any((folder / name).is_dir() for name in names):
        return f"{text}: use --recursive to search its subfolders"
    return text if names else f"{text}: it is empty"


def _walk(
    folder: Path, *, recursive: bool, on_error: Callable[[OSError], None]
) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder once, with its files that are not hidden; linked folders come last."""
    starts, seen = [folder], set[str]()
    for start in starts:
        for name, folders, files in os.walk(start, onerror=on_error):
            place, real = Path(name), os.path.realpath(name)
            folders[:] = sorted(sub for sub in folders if recursive and real not in seen and sub[0] != ".")
            if real not in seen:
                yield place, [file for file in files if file[0] != "."]
            seen.add(real)
            starts += [place / sub for sub in folders if (place / sub).is_symlink()]


def _describe_ignored(folder: Path, ignored: Mapping[str, int]) -> str:
    if not ignored:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items(), key=lambda item: -item[1]))
    total = sum(ignored.values())
    return f"{folder}: ignored {total} other {'file' if total == 1 else 'files'} ({kinds})"


def save_stdin(folder: Path) -> Path:
    """Copy standard input to a file in `folder`, since decoders seek.

    Raises:
        InputError: Standard input is empty, or a terminal.
        OutputError: The file cannot be written.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("- reads a song from stdin: pipe one into it")
    path = folder / "stdin"
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    except OSError as error:
        raise OutputError(f"cannot save stdin to {folder} ({error.strerror}): {advice(error)}") from None
    if not path.stat().st_size:
        raise InputError("stdin is empty (0 bytes): pipe a song into it")
    return path


def parse_shard(text: str | None) -> tuple[int, int]:
    """(i, n) of "i/n", counted from 1; (1, 1) of None. Raises ValueError."""
    number, slash, count = (text or "1/1").partition("/")
    if not slash or not 1 <= int(number) <= int(count):
        raise ValueError
    return int(number), int(count)


def unique(songs: Sequence[FoundSong]) -> Iterator[FoundSong]:
    """Each file once, however often it was named, and by whatever path."""
    seen: set[str] = set()
    for song in songs:
        resolved = os.path.realpath(song.path)  # a Path raises for circular links
        if resolved not in seen:
            seen.add(resolved)
            yield song
