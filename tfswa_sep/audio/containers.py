"""Detect a song's file type from its first bytes, and find the tags around the audio.

ffmpeg is told which demuxer to use, and only those listed here are allowed: if it guessed, it would recognize a
playlist or manifest hidden behind an ID3 tag, and open the files named in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

_HEAD = 1 << 13  # bytes examined after the tags
_LARGEST_PADDING = 1 << 16  # zero bytes between a tag and the audio


class Bytes(Protocol):
    """What `bytes` and `FileBytes` have in common."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: slice, /) -> bytes: ...


# First bytes -> ffmpeg's demuxer. A dot in a pattern is any byte.
_MAGIC = tuple(
    (re.compile(pattern, re.DOTALL), demuxer)
    for pattern, demuxer in (
        (rb"....(?:ftyp|moov|mdat|moof|free|skip|wide|pnot|styp|sidx|uuid)", "mov"),
        (rb"RIFF....WAVE|RIFX....WAVE|(?:RF64|BW64)....WAVE", "wav"),
        (rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb", "w64"),
        (rb"RIFF....AVI[ X]", "avi"),
        (rb"FORM....AIF[FC]", "aiff"),
        (rb"FORM....(?:8SVX|16SV|MAUD)|FRM8", "iff"),
        (rb"caff\0\x01", "caf"),
        (rb"\.snd", "au"),
        (rb"fLaC", "flac"),
        (rb"OggS", "ogg"),
        (rb"\x1a\x45\xdf\xa3", "matroska"),
        (rb"FLV\x01", "flv"),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
        (rb"\.RMF\0|\.ra\xfd", "rm"),
        (rb"MAC ", "ape"),
        (rb"wvpk", "wv"),
        (rb"TTA1", "tta"),
        (rb"MPCK", "mpc8"),
        (rb"MP\+[\x07\x17]", "mpc"),
        (rb"tBaK", "tak"),
        (rb"#!AMR", "amr"),
        (rb"DSD ", "dsf"),
        (rb"ajkg", "shn"),
        (rb"ea3[\x01\x02\x03]|EA3[\x01\x02\x03]", "oma"),
        (rb"Creative Voice File\x1a", "voc"),
        (rb"\x64\xa3[\x01-\x04]\0|\0[\x01-\x04]\xa3\x64", "ircam"),
        (rb"NIST_1A", "nistsphere"),
        (rb"nut/multimedia container\0", "nut"),
        (rb"[FC]WS[\x01-\x32]", "swf"),
        (rb"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", "mxf"),
        (rb"\xb7\xd8\x00\x20\x37\x49\xda\x11", "wtv"),
        (rb"\x1f\x07\0", "dv"),
        (rb"\0\0\x01\xba", "mpeg"),
        (rb"G.{187}G.{187}G", "mpegts"),
        (rb".{4}G.{191}G.{191}G", "mpegts"),  # with a time before each packet, as Blu-ray discs have them
        (rb"....\xf8\x72\x6f\xba", "truehd"),
        (rb"....\xf8\x72\x6f\xbb", "mlp"),
        (rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\0|\xff\x1f\0\xe8", "dts"),
        (rb"DTSHDHDR", "dtshd"),
        (rb"\x0b\x77...[\x00-\x57]", "ac3"),
        (rb"\x0b\x77...[\x58-\x87]", "eac3"),
        (rb"\x56[\xe0-\xff]", "loas"),
        (rb"\xff[\xf0\xf1\xf8\xf9]", "aac"),
        (rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]", "mp3"),
    )
)
# For formats without a signature: raw audio has none, and a recorded stream may begin anywhere.
_BY_EXTENSION = {
    **{f".{name}": name for name in ("aac", "ac3", "dts", "eac3", "g722", "gsm", "mp3", "sbc")},
    **dict.fromkeys((".mp2", ".mpa"), "mp3"),
    **dict.fromkeys((".m2ts", ".mts", ".ts"), "mpegts"),
    **dict.fromkeys((".mpeg", ".mpg", ".vob"), "mpeg"),
}


def find_demuxer(path: Path) -> str | None:
    """Return ffmpeg's demuxer for this file; None if it is no known audio or video format. Raises OSError."""
    with path.open("rb") as file:
        start = 0
        while length := id3_length(file.read(10)):
            start += length
            file.seek(start)
        file.seek(start)
        head = file.read(_HEAD)
        if not head.strip(b"\0"):  # padding not counted in the tag's length
            head += file.read(_LARGEST_PADDING)
            head = head.lstrip(b"\0")
    for pattern, demuxer in _MAGIC:
        if pattern.match(head):
            return demuxer
    return _BY_EXTENSION.get(path.suffix.lower())


def id3_length(head: bytes) -> int:
    """Return the length in bytes of the ID3v2 tag at the start of `data` (at least 10 bytes); 0 if there is
    none.
    """
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:10]) > 0x7F:
        return 0
    length = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return length + (10 if head[5] & 0x10 else 0)  # a footer


def skip_tags(data: Bytes, at: int) -> int:
    """Return the end of the consecutive tags that begin at `at`; `at` if there are none."""
    while True:
        head = data[at : at + 32]
        if length := id3_length(head):
            at += length
        elif head[:8] == b"APETAGEX":
            at += 32 + int.from_bytes(head[12:16], "little")
        elif head[:3] == b"TAG":
            at += 227 if head[3:4] == b"+" else 128
        else:
            return at


def end_of_sound(data: Bytes, start: int = 0, end: int | None = None) -> int:
    """Return where the tags at the end begin (ID3v1, APEv2, Lyrics3, ID3v2); the end if there are none.

    Args:
        data: The file.
        start: The first byte that may belong to a tag.
        end: The file's end, or where another file begins.
    """
    end = len(data) if end is None else end
    while end > start:
        length = _tag_length(data[max(start, end - 227) : end])
        if not 0 < length <= end - start:
            return end
        end -= length
    return end


def _tag_length(tail: bytes) -> int:
    """Bytes of the tag that ends with the up to 227 bytes `tail`."""
    if tail[-128:-125] == b"TAG":
        return 227 if tail[:4] == b"TAG+" else 128
    if tail[-32:-24] == b"APETAGEX":
        return int.from_bytes(tail[-20:-16], "little") + (32 if tail[-9] & 0x80 else 0)
    if tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
        return int(tail[-15:-9]) + 15
    if tail[-10:-7] == b"3DI":
        return id3_length(b"ID3" + tail[-7:])
    return 0
