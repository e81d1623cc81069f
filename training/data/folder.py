"""Plain folders of multitracks: one folder per song, and in it one file or one folder of files per stem.

    FOLDER/<song>/vocals.wav
    FOLDER/<song>/guitar/left.flac, right.flac      a stem that is the sum of its files, as in MoisesDB
    FOLDER/<song>.stem.mp4                          drums, bass, other and vocals in one file, as in MUSDB18

Stems may have any name; names are lower-cased. If a song has no file for a stem that other songs have, that stem is
unknown in this song and is not supervised, nor is any sum that includes it; a silent file means a silent stem.
`mixture.*` and the mixture of a `.stem.mp4` are ignored: the mixture is the sum of the stems.
"""

from __future__ import annotations

from pathlib import Path

from tfswa_sep.errors import InputError
from tfswa_sep.evaluation.multitrack import AUDIO_SUFFIXES, MIXTURE, PACKED_SUFFIX, packed_songs
from tfswa_sep.evaluation.musdb import STREAMS
from training.data.tracks import Track


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


def _is_audio(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
