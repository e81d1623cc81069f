"""The tags of a song (title, artist, album, ...) and its cover, copied to its stems.

Tags are read by mutagen where it is installed, else by ffmpeg, else by libsndfile. mutagen is GPL and so an extra;
without it MP3, WAV, M4A and, if ffmpeg is installed, Opus stems have all tags, FLAC and Ogg stems those that libsndfile
can write, and none has a cover. Tags never make a song fail: those that cannot be read are skipped.

A tag with several values, such as two artists, has a NUL between them, as in ID3.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import soundfile

from tfswa_sep.audio.containers import find_demuxer
from tfswa_sep.audio.decode import soundfile_name
from tfswa_sep.audio.ffmpeg import ffmpeg_encodes, find_ffmpeg
from tfswa_sep.audio.ffmpeg_process import FfmpegProcess
from tfswa_sep.audio.truncation import is_bare_wav


class _Names(NamedTuple):
    """The names of a tag in other formats."""

    ffmpeg: str
    id3: str
    mp4: str


_NAMES = {  # by their names in FLAC and Ogg, which libsndfile uses too
    "title": _Names("title", "TIT2", "\xa9nam"),
    "artist": _Names("artist", "TPE1", "\xa9ART"),
    "album": _Names("album", "TALB", "\xa9alb"),
    "albumartist": _Names("album_artist", "TPE2", "aART"),
    "composer": _Names("composer", "TCOM", "\xa9wrt"),
    "date": _Names("date", "TDRC", "\xa9day"),
    "tracknumber": _Names("track", "TRCK", "trkn"),
    "discnumber": _Names("disc", "TPOS", "disk"),
    "genre": _Names("genre", "TCON", "\xa9gen"),
    "comment": _Names("comment", "COMM", "\xa9cmt"),
    "copyright": _Names("copyright", "TCOP", "cprt"),
    "lyrics": _Names("lyrics", "USLT", "\xa9lyr"),
}
_LIBSNDFILE = ("title", "artist", "album", "date", "tracknumber", "genre", "comment", "copyright")
_LONGEST = (
    6_000  # bytes of a tag: libsndfile's Opus files can hold 64 kB together, command lines not much more
)
_LONGEST_LYRICS = 30_000
_MOVED = 1 << 20  # bytes at once
_HEAD = 1 << 18  # bytes at the start of a file that are searched for a cover
_COVER_MARKS = (b"APIC", b"covr", b"METADATA_BLOCK_PICTURE", b"image/jpeg", b"image/png")
_FRONT = 3  # the kind of picture, in ID3 and FLAC


def read_tags(path: Path) -> dict[str, str]:
    """Return {name as in FLAC: text}; empty if there are none."""
    with suppress(OSError):
        if is_bare_wav(path):  # saves a tenth of a second, in which ffmpeg or mutagen would be loaded
            return {}
    found = _read_with_libsndfile(path)
    more = _read_with_mutagen(path)
    if more is None:
        more = _read_with_ffmpeg(path)
    found |= {name: values for name, values in more.items() if values}
    texts = {name: "\0".join(filter(None, map(str.strip, values))) for name, values in found.items()}
    return {name: text for name, text in texts.items() if text}


def cut_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags, each cut to a length that every format can hold."""

    def cut(name: str, text: str) -> str:
        longest = _LONGEST_LYRICS if name == "lyrics" else _LONGEST
        return text.encode("utf-8", errors="replace")[:longest].decode("utf-8", errors="ignore")

    return {name: cut(name, text) for name, text in tags.items()}


def as_one_line(text: str) -> str:
    """A tag's values as one, for formats that can hold only one."""
    return text.replace("\0", "; ")


def lost_tags(tags: Mapping[str, str], container: str) -> list[str]:
    """Names of the tags that cannot be written to this container because mutagen is missing."""
    if container not in ("flac", "ogg", "opus") or has_mutagen() or ffmpeg_encodes(container):
        return []
    return [name for name in tags if name not in _LIBSNDFILE]


def libsndfile_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that libsndfile can write."""
    return {name: as_one_line(text) for name, text in tags.items() if name in _LIBSNDFILE}


def ffmpeg_options(tags: Mapping[str, str]) -> list[str]:
    """Options that make ffmpeg write the tags."""
    options = []
    for name, text in tags.items():
        options += ["-metadata", f"{_NAMES[name].ffmpeg}={as_one_line(text)}"]
    return options


def make_id3(tags: Mapping[str, str]) -> bytes:
    """The tags as ID3 2.4: libsndfile can write only ASCII to an MP3. Format: id3.org, id3v2.4.0."""

    def size(content: bytes) -> bytes:  # seven bits per byte
        return bytes(len(content) >> shift & 127 for shift in (21, 14, 7, 0))

    frames = b""
    for name, text in tags.items():
        kind = _NAMES[name].id3
        long = b"XXX\0" if kind in ("COMM", "USLT") else b""  # an unknown language, and no description
        content = b"\3" + long + (as_one_line(text) if long else text).encode("utf-8", errors="replace")
        frames += kind.encode() + size(content) + b"\0\0" + content
    return b"ID3\4\0\0" + size(frames) + frames


def insert_id3(path: Path, tags: Mapping[str, str]) -> None:
    """Put the tags before the sound of an MP3, in place. Raises OSError."""
    tag = make_id3(tags)
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:  # from the end on, so that nothing is overwritten before it has moved
            start = max(0, end - _MOVED)
            file.seek(start)
            moved = file.read(end - start)
            file.seek(start + len(tag))
            file.write(moved)
            end = start
        file.seek(0)
        file.write(tag)


def add_wav_tags(path: Path, tags: Mapping[str, str]) -> None:
    """Append a chunk with the tags to a WAV, in place; libsndfile writes those that LIST can hold. Raises OSError."""
    tag = make_id3(tags)
    with path.open("rb+") as file:
        if file.read(4) != b"RIFF":  # RF64, of more than 4 GB
            return
        end = file.seek(0, os.SEEK_END)
        file.write(bytes(end % 2) + b"id3 " + len(tag).to_bytes(4, "little") + tag + bytes(len(tag) % 2))
        riff = file.tell() - 8
        file.seek(4)
        file.write(riff.to_bytes(4, "little"))


def _read_with_libsndfile(path: Path) -> dict[str, list[str]]:
    with suppress(OSError, RuntimeError), soundfile.SoundFile(soundfile_name(path)) as file:
        return {name: [getattr(file, name, "")] for name in _LIBSNDFILE}
    return {}


def _read_with_mutagen(path: Path) -> dict[str, list[str]] | None:
    """None if mutagen is missing or does not know the format."""
    if not has_mutagen():
        return None
    import mutagen
    from mutagen import mp4

    with suppress(Exception):  # mutagen raises many kinds for damaged tags
        file: Any = mutagen.File(path)
        if file is None:
            return None
        tags = file.tags
        if not tags:
            return {}
        if hasattr(tags, "getall"):  # ID3
            return {name: list(_id3_values(tags, names.id3)) for name, names in _NAMES.items()}
        if isinstance(tags, mp4.MP4Tags):
            return {
                name: [_mp4_text(value) for value in tags.get(names.mp4, ())]
                for name, names in _NAMES.items()
            }
        by_name = {str(name).lower().replace(" ", ""): values for name, values in dict(tags).items()}
        by_name.setdefault("comment", by_name.get("description", ()))  # as ffmpeg calls it
        return {name: [str(value) for value in by_name.get(name, ())] for name in _NAMES}
    return None


def _id3_values(tags: Any, kind: str) -> Iterator[str]:
    for frame in tags.getall(kind):
        if kind in ("COMM", "USLT") and frame.desc:
            continue  # data written by a program, not the comment
        yield from [str(frame.text)] if isinstance(frame.text, str) else map(str, frame.text)


def _mp4_text(value: Any) -> str:
    if isinstance(value, tuple):  # a number and the total
        return "/".join(str(number) for number in value if number)
    return str(value)


def _read_with_ffmpeg(path: Path) -> dict[str, list[str]]:
    program = find_ffmpeg()
    demuxer = find_demuxer(path)
    if program is None or demuxer is None:
        return {}
    command = [program, "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file,pipe"]
    command += ["-f", demuxer, "-i", f"file:{path.resolve()}"]
    if demuxer == "ogg":  # in Ogg, tags belong to the stream
        command += ["-map_metadata", "0:s:a:0"]
    command += ["-f", "ffmetadata", "-"]
    try:
        with FfmpegProcess(command, stdout=True) as child:
            output = child.read()
    except OSError:  # an ffmpeg that does not run, or hangs; the song may not need it
        return {}
    text = output.decode("utf-8", errors="replace").partition("\n[CHAPTER]")[0]
    found: dict[str, str] = {}
    for line in re.split(r"(?<!\\)\n", text):
        key, _, value = line.partition("=")
        if not line.startswith((";", "[")):
            found.setdefault(re.sub("-[a-z]{3}$", "", key.lower()), value)  # lyrics-eng
    # A backslash escapes =, ;, #, itself, and line ends within the text.
    return {
        name: [re.sub(r"\\(.)", r"\1", found[names.ffmpeg], flags=re.DOTALL)]
        for name, names in _NAMES.items()
        if names.ffmpeg in found
    }


def has_mutagen() -> bool:
    """Whether mutagen is installed."""
    return importlib.util.find_spec("mutagen") is not None


def may_have_cover(path: Path) -> bool:
    """Whether a song's file seems to contain a cover."""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(_HEAD)
        return any(mark in head for mark in _COVER_MARKS)
    return False


def read_cover(path: Path) -> bytes | None:
    """The song's cover as a JPEG or PNG file; None if there is none or it cannot be read."""
    if not has_mutagen():
        return None
    import mutagen

    with suppress(mutagen.MutagenError, OSError, ValueError):
        file: Any = None if is_bare_wav(path) else mutagen.File(path)
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


def write_all(path: Path, extension: str, tags: Mapping[str, str]) -> None:
    """Write all tags to a FLAC, Ogg or Opus file, in place, if mutagen is installed. Raises OSError."""
    if not has_mutagen():
        return
    import mutagen

    try:
        file: Any = _open(path, extension)
        for name, text in tags.items():
            file[name] = text.split("\0")
        file.save()
    except mutagen.MutagenError as error:
        raise OSError(0, str(error)) from None


def write_cover(path: Path, extension: str, cover: bytes) -> None:
    """Add a cover to a stem file with this extension, in place. Raises OSError."""
    import mutagen
    from mutagen import flac, id3, mp4

    picture = flac.Picture()
    picture.type, picture.mime, picture.data = _FRONT, _kind(cover), cover
    try:
        file: Any = _open(path, extension)
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


def _open(path: Path, extension: str) -> Any:
    """A stem's file, which has a temporary name. Raises MutagenError."""
    from mutagen import flac, mp3, mp4, oggopus, oggvorbis, wave

    openers = {
        ".mp3": mp3.MP3,
        ".wav": wave.WAVE,
        ".flac": flac.FLAC,
        ".ogg": oggvorbis.OggVorbis,
        ".opus": oggopus.OggOpus,
        ".m4a": mp4.MP4,
    }
    return openers[extension](path)


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
