"""What a song's file says of it (title, artist, album, ...) and its cover, for the stems' files.

Text is read and written by libsndfile, or by ffmpeg for what libsndfile cannot read. Covers need mutagen,
which is GPL and so an extra: without it the stems have none. No tag is worth a failed song: what cannot be
read is left out.
"""

from __future__ import annotations

import base64
import importlib.util
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import soundfile

from tfswa_sep.audio.containers import find_demuxer
from tfswa_sep.audio.decode import soundfile_name
from tfswa_sep.audio.ffmpeg import find_ffmpeg

_NAMES = ("title", "artist", "album", "date", "tracknumber", "genre", "comment", "copyright")
_HEAD = 1 << 18  # bytes at a file's beginning in which a cover is looked for
_COVER_MARKS = (b"APIC", b"covr", b"METADATA_BLOCK_PICTURE", b"image/jpeg", b"image/png")
_FRONT = 3  # the kind of picture, in ID3 and FLAC


def read_tags(path: Path) -> dict[str, str]:
    """Name (as libsndfile has it) -> text; empty where nothing is known."""
    try:
        with soundfile.SoundFile(soundfile_name(path)) as file:
            found = {name: getattr(file, name, "") for name in _NAMES}
    except (OSError, RuntimeError):
        found = _read_with_ffmpeg(path)
    return {name: text.strip() for name, text in found.items() if text.strip()}


def _read_with_ffmpeg(path: Path) -> dict[str, str]:
    program = find_ffmpeg()
    demuxer = find_demuxer(path)
    if program is None or demuxer is None:
        return {}
    command = [program, "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file,pipe"]
    command += ["-f", demuxer, "-i", f"file:{path.resolve()}", "-f", "ffmetadata", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    lines = re.split(r"(?<!\\)\n", done.stdout.decode("utf-8", errors="replace"))
    pairs = (line.partition("=") for line in lines if not line.startswith((";", "[")))
    found = {"tracknumber" if name == "track" else name.lower(): text for name, _, text in pairs}
    # A backslash goes before =, ;, #, itself, and the end of a line that the text goes on behind.
    return {
        name: re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) for name, text in found.items() if name in _NAMES
    }


def can_write_covers() -> bool:
    """Whether mutagen is installed."""
    return importlib.util.find_spec("mutagen") is not None


def may_have_cover(path: Path) -> bool:
    """Whether a song's file looks as if a picture were in it."""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(_HEAD)
        return any(mark in head for mark in _COVER_MARKS)
    return False


def read_cover(path: Path) -> bytes | None:
    """The song's cover, a JPEG or PNG file; None if it has none that can be read."""
    if not can_write_covers():
        return None
    import mutagen

    with suppress(mutagen.MutagenError, OSError, ValueError):
        file: Any = mutagen.File(path)
        if file is None:
            return None
        pictures = [*getattr(file, "pictures", ()), *_ogg_pictures(file)]
        if hasattr(file.tags, "getall"):  # ID3
            pictures += file.tags.getall("APIC")
        pictures.sort(key=lambda picture: picture.type != _FRONT)
        found = [bytes(picture.data) for picture in pictures]
        if not found and file.tags and "covr" in file.tags:  # MP4
            found = [bytes(picture) for picture in file.tags["covr"]]
        return found[0] if found and _kind(found[0]) else None
    return None


def write_mp3_text(path: Path, text: Mapping[str, str]) -> None:
    """Write the text of an MP3 in place, where mutagen is there. Raises OSError.

    libsndfile 1.2.2 writes UTF-8 as if it were Latin-1, so it can be trusted with ASCII alone.
    """
    if not can_write_covers():
        return
    import mutagen
    from mutagen import easyid3, id3

    try:
        easy = easyid3.EasyID3()
        with suppress(id3.ID3NoHeaderError):  # libsndfile writes none where nothing is ASCII
            easy.load(path)
        for name, value in text.items():
            if name in easyid3.EasyID3.valid_keys:
                easy[name] = value
        easy.save(path)
    except mutagen.MutagenError as error:
        raise OSError(0, str(error)) from None


def write_cover(path: Path, extension: str, cover: bytes) -> None:
    """Put a cover into a stem's file of the kind `extension`, in place. Raises OSError."""
    import mutagen
    from mutagen import flac, id3, mp3, mp4, oggopus, oggvorbis, wave

    openers = {
        ".mp3": mp3.MP3,
        ".wav": wave.WAVE,
        ".flac": flac.FLAC,
        ".ogg": oggvorbis.OggVorbis,
        ".opus": oggopus.OggOpus,
        ".m4a": mp4.MP4,
    }

    picture = flac.Picture()
    picture.type, picture.mime, picture.data = _FRONT, _kind(cover), cover
    try:
        file: Any = openers[extension](path)
    except mutagen.MutagenError:
        return  # such as a WAV of more than 4 GB
    if extension in (".mp3", ".wav"):
        if file.tags is None:
            file.add_tags()
        file.tags.add(id3.APIC(encoding=3, mime=picture.mime, type=_FRONT, desc="", data=cover))
    elif extension == ".flac":
        file.add_picture(picture)
    elif extension in (".ogg", ".opus"):
        file["metadata_block_picture"] = [base64.b64encode(picture.write()).decode("ascii")]
    else:
        png = picture.mime == "image/png"
        file["covr"] = [mp4.MP4Cover(cover, mp4.AtomDataType.PNG if png else mp4.AtomDataType.JPEG)]
    try:
        file.save()
    except mutagen.MutagenError as error:
        raise OSError(0, str(error)) from None


def _ogg_pictures(file: Any) -> list[Any]:
    from mutagen import flac
    from mutagen._vorbis import VComment

    if not isinstance(file.tags, VComment):
        return []
    coded = dict(file.tags).get("metadata_block_picture", ())
    return [flac.Picture(base64.b64decode(text)) for text in coded]


def _kind(cover: bytes) -> str:
    if cover.startswith(b"\xff\xd8"):
        return "image/jpeg"
    return "image/png" if cover.startswith(b"\x89PNG") else ""
