"""MUSDB18 as the `musdb` package finds and decodes it: `.stem.mp4` files, or MUSDB18-HQ's folders of WAV files.

    PATH/test/<song>.stem.mp4          mixture, drums, bass, other, vocals as AAC streams
    PATH/test/<song>/<stem>.wav        the same before AAC (HQ)

Rafii et al. 2017, https://doi.org/10.5281/zenodo.1117372; HQ: https://doi.org/10.5281/zenodo.3338373.
The freely available excerpts of 7 s, one per song: https://doi.org/10.5281/zenodo.3270814
"""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from tfswa_sep.errors import InputError, OutputError
from tfswa_sep.evaluation.multitrack import MIXTURE, PACKED_SUFFIX, Song, packed_songs, stem_files
from tfswa_sep.evaluation.optional_packages import need
from tfswa_sep.evaluation.results import EXCERPTS
from tfswa_sep.registry import download
from tfswa_sep.registry.folders import cache_folder
from tfswa_sep.registry.models_toml import ModelFile

STREAMS = (MIXTURE, "drums", "bass", "other", "vocals")  # in the order of a .stem.mp4
EXCERPT_SECONDS = 10  # songs that are shorter than this are excerpts
ARCHIVE = ModelFile(
    "zip",
    # as in the musdb package
    "https://github.com/sigsep/sigsep-mus-db/releases/download/v0.4.0/MUSDB18-7-STEMS.zip",
    sha256="",  # not published; zip files have checksums of their own
    bytes=147_209_385,
)
_MEMBER = re.compile(rf"(test|train)/[^/\\:]+{re.escape(PACKED_SUFFIX)}")


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
    name = EXCERPTS if _is_excerpt(tracks[0].path) else "MUSDB18"
    return f"{name} {subset}", [Song(track.name, {}, packed=Path(track.path)) for track in tracks]


def _is_excerpt(path: str) -> bool:
    stempeg = need("stempeg", "--musdb")
    try:
        return bool(stempeg.Info(path).duration(0) < EXCERPT_SECONDS)
    except Exception:  # any error of ffprobe or its wrapper; decode_stems reports damaged files
        return False


def excerpts_folder() -> Path:
    """Where `download_excerpts` puts MUSDB18's excerpts."""
    return cache_folder() / "musdb18-7"


def download_excerpts(on_progress: download.Progress | None = None) -> Path:
    """Download MUSDB18's excerpts of 7 s, unless they are there; return their folder, for `find_musdb`.

    A download that was cut off resumes. Of the archive only test/*.stem.mp4 and train/*.stem.mp4 are unpacked.

    Args:
        on_progress: Called with the bytes received so far, and those of the archive.

    Raises:
        InputError: The archive is damaged, or not MUSDB18's.
        ModelError: Offline, no network, or cut off.
        OutputError: The cache cannot be written.
    """
    folder = excerpts_folder()
    if folder.is_dir():
        return folder
    try:
        with download.lock(cache_folder() / ".locks" / "musdb18-7.lock"):
            if not folder.is_dir():  # another process may have downloaded them meanwhile
                archive = download.fetch(ARCHIVE, on_progress=on_progress)
                try:
                    _unpack(archive, folder)
                finally:
                    archive.unlink()
    except OSError as error:
        raise OutputError(
            f"cannot write to {cache_folder()}: {error.strerror}; set TFSWA_CACHE to another folder"
        ) from error
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the songs of a zip file into a new folder, completely or not at all."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    try:
        with zipfile.ZipFile(archive) as source:
            songs = [member for member in source.infolist() if _MEMBER.fullmatch(member.filename)]
            if not songs or sum(member.file_size for member in songs) > 2 * ARCHIVE.bytes:
                raise InputError(f"{ARCHIVE.where} is not the archive of MUSDB18's excerpts")
            source.extractall(part, songs)
        part.rename(folder)
    except zipfile.BadZipFile as error:
        raise InputError(f"{ARCHIVE.where} arrived damaged ({error}): run again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
