"""Your own recordings, in the four layouts that Music-Source-Separation-Training numbers.

Types 1 and 4 are a folder per song, and in it one file or one folder of files per stem:

    FOLDER/<song>/vocals.wav
    FOLDER/<song>/guitar/left.flac, right.flac      a stem that is the sum of its files, as in MoisesDB
    FOLDER/<song>.stem.mp4                          drums, bass, other and vocals in one file, as in MUSDB18

Type 2 is a folder of recordings per stem, and type 3 a CSV file with a header and one row per recording:

    FOLDER/vocals/any_name.wav
    instrum,path                                    or type,path; relative to the file's folder
    vocals,songs/any_name.wav

Type 4 uses the stems of a song together. The other types mix each stem from a song of its own.

Stems may have any name; names are lower-cased. If a song of type 4 has no file for a stem that other songs have, that
stem is unknown in this song and is not supervised, nor is any sum that includes it; a silent file means a silent stem.
`mixture.*` and the mixture of a `.stem.mp4` are ignored: the mixture is the sum of the stems.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from tfswa_sep.errors import InputError
from tfswa_sep.evaluation.multitrack import AUDIO_SUFFIXES, MIXTURE, PACKED_SUFFIX, packed_songs
from tfswa_sep.evaluation.musdb import STREAMS
from training.data.tracks import Track

STEM_COLUMNS = (
    "instrum",
    "type",
    "stem",
)  # of a CSV file; the first two are Music-Source-Separation-Training's


def find_tracks(root: Path) -> tuple[list[Track], tuple[str, ...]]:
    """The songs in `root`, folders and `.stem.mp4` files, and the names of all their stems.

    Raises InputError if there are none, if two files are the same stem, or if two songs share a name.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder of songs")
    tracks = []
    for song in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files: dict[str, tuple[Path, ...]] = {}
        for path in sorted(song.iterdir()):
            paths = tuple(sorted(filter(_is_audio, path.iterdir()))) if path.is_dir() else (path,)
            stem = (path.name if path.is_dir() else path.stem).lower()
            if stem == MIXTURE or not paths or not all(map(_is_audio, paths)):
                continue
            if stem in files:
                raise InputError(f"{path} and {files[stem][0].name} are the same stem: remove one")
            files[stem] = paths
        if files:
            tracks.append(Track(song.name, files))
    for path in packed_songs(root):
        streams = {stem: i for i, stem in enumerate(STREAMS) if stem != MIXTURE}
        name = path.name.removesuffix(PACKED_SUFFIX)
        if any(track.name == name for track in tracks):
            raise InputError(f"two songs of {root} are called {name!r}: rename one")
        tracks.append(Track(name, dict.fromkeys(streams, (path,)), streams))
    if not tracks:
        raise InputError(
            f"no songs in {root}: expected folders with files such as vocals.wav and drums.flac, or .stem.mp4 files"
        )
    return tracks, tuple(sorted({stem for track in tracks for stem in track.files}))


def find_recordings(root: Path) -> dict[str, list[Track]]:
    """The recordings of each stem in a folder of type 2.

    Raises:
        InputError: There are none.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder of stems")
    recordings: dict[str, list[Track]] = {}
    for place in sorted(path for path in root.iterdir() if path.is_dir()):
        stem = place.name.lower()
        if stem != MIXTURE and (paths := sorted(filter(_is_audio, place.iterdir()))):
            recordings.setdefault(stem, []).extend(_recording(stem, path) for path in paths)
    if not recordings:
        raise InputError(
            f"no recordings in {root}: expected folders such as vocals and drums with audio files"
        )
    return recordings


def read_list(path: Path) -> dict[str, list[Track]]:
    """The recordings of each stem that a CSV file lists (type 3).

    Raises:
        InputError: The file cannot be read, lacks a column, or lists a file that is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV file: {error}") from error
    column = next((name for name in STEM_COLUMNS if name in columns), None)
    if column is None or "path" not in columns:
        raise InputError(f"{path} needs the columns instrum and path, but has {', '.join(columns) or 'none'}")
    recordings: dict[str, list[Track]] = {}
    for number, row in enumerate(rows, start=1):
        stem, file = (row[column] or "").strip().lower(), path.parent / (row["path"] or "").strip()
        if not stem or not file.is_file():
            raise InputError(f"{path}, recording {number}: " + (f"{file} is missing" if stem else "no stem"))
        recordings.setdefault(stem, []).append(_recording(stem, file))
    if not recordings:
        raise InputError(f"{path} lists no recordings")
    return recordings


def _recording(stem: str, path: Path) -> Track:
    """A track of one stem; recordings of the same name in different folders have different track names."""
    return Track(unique_name(path, path.stem), {stem: (path,)})


def unique_name(path: Path, name: str) -> str:
    """`name` with a part that tells paths of the same name apart."""
    return f"{name}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


def _is_audio(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
