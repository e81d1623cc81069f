"""MUSDB18 as the `musdb` package finds and decodes it: `.stem.mp4` files, or MUSDB18-HQ's folders of WAV files.

    PATH/test/<song>.stem.mp4          mixture, drums, bass, other, vocals as AAC streams
    PATH/test/<song>/<stem>.wav        the same before AAC (HQ)

Rafii et al. 2017, https://doi.org/10.5281/zenodo.1117372; HQ: https://doi.org/10.5281/zenodo.3338373
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from tfswa_sep.errors import InputError
from tfswa_sep.evaluation.extra import need
from tfswa_sep.evaluation.multitrack import MIXTURE, Song, packed_songs, stem_files

STREAMS = (MIXTURE, "drums", "bass", "other", "vocals")  # in the order of a .stem.mp4


def find_musdb(root: Path, *, subset: str = "test") -> tuple[str, list[Song]]:
    """(name of the data set, its songs in alphabetical order) of one subset, "test" or "train".

    Raises:
        InputError: There are no songs, or songs of both kinds.
        UsageError: musdb is not installed.
    """
    folder = root / subset
    packed = bool(packed_songs(folder))
    unpacked = any(folder.glob("*/mixture.wav"))
    if packed == unpacked:
        what = "both kinds of songs" if packed else "no songs"
        hint = f"; score the files of {root} itself with --data" if packed_songs(root) else ""
        raise InputError(f"{what} in {folder}: expected either <song>.stem.mp4 or <song>/mixture.wav{hint}")
    if unpacked:
        folders = sorted(path.parent for path in folder.glob("*/mixture.wav"))
        return f"MUSDB18-HQ {subset}", [Song(path.name, stem_files(path)) for path in folders]
    tracks = need("musdb", "--musdb").DB(root=str(root), subsets=subset).tracks
    return f"MUSDB18 {subset}", [Song(track.name, {}, packed=Path(track.path)) for track in tracks]


def decode_stems(song: Song, folder: Path) -> Song:
    """Decode a packed song to WAV files in `folder`, in 16 bits as musdb does.

    Raises:
        InputError: The file is not a stem file.
        UsageError: stempeg or ffmpeg is not installed.
    """
    if song.packed is None:
        return song
    stempeg = need("stempeg", "a .stem.mp4 file")
    try:
        streams, rate = stempeg.read_stems(str(song.packed), ffmpeg_format="s16le")
    except Exception as error:  # any error of ffmpeg or its wrapper
        raise InputError(f"{song.packed} cannot be decoded: {error}") from error
    if streams.ndim != 3 or len(streams) != len(STREAMS):
        raise InputError(f"{song.packed} does not have the five streams {', '.join(STREAMS)}")
    files = {stem: folder / f"{stem}.wav" for stem in STREAMS}
    for (_, path), stream in zip(files.items(), streams, strict=True):
        whole = np.clip(np.round(stream * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
        soundfile.write(path, whole, round(rate), subtype="PCM_16")
    if song.summed:
        del files[MIXTURE]
    return replace(song, files=files, packed=None)
