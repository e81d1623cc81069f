"""Find out how much audio a file contains, from its bytes, without decoding.

Decoders trust the length in a header, so they silently lose audio when files were concatenated, a size wrapped
at 4 GB, or a length was never filled in. Here the whole file is scanned, page by page or frame by frame, and
compared with its header. The audio is returned as parts, which a decoder reads one after the other; whatever is
missing is reported as a fault.
Formats: the Microsoft RIFF and EBU Tech 3306 (RF64) specifications, Sony Wave64, Apple's AIFF-C and CAF;
RFC 9639 (FLAC); RFC 3533 (Ogg); for MP3 see truncation_mp3.py.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tfswa_sep.audio.containers import end_of_sound, find_demuxer, skip_tags
from tfswa_sep.audio.file_parts import FileBytes, Layout, Part, are_tags, share
from tfswa_sep.audio.truncation_ffmpeg import SURVEYS
from tfswa_sep.audio.truncation_mp3 import survey_mp3

_UNKNOWN_32 = 0xFFFF_FFFF
_STREAMED_32 = (
    (0x7FFF_0000, 0x8000_1000),
    (0xFFFF_0000, _UNKNOWN_32),
)  # placeholders for an unknown length
_PADDING = 1 << 16  # zero bytes after the audio that count as padding
_MAGIC_BYTES = 16  # of the patterns that begin a file
_CHUNK_NAME = re.compile(rb"[A-Za-z_(][A-Za-z0-9_ )(]{3}")
_WAV_SOUND = {b"fmt ", b"fact", b"PEAK", b"data"}  # names of chunks
_OGG_PAGE = struct.Struct("<4sBBqIIIB")
_BOS, _EOS = 2, 4  # an Ogg page's flags
_BIT_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LAST_FLAC_FRAME = 1 << 20  # bytes before the end in which the last frame begins


def survey(path: Path) -> Layout | None:
    """Survey a file; None for formats that are not handled here. Raises OSError."""
    demuxer = find_demuxer(path)
    look = _SURVEYS.get(demuxer or "")
    if look is None:
        return None
    with FileBytes(path) as data:
        start = skip_tags(data, 0)
        if start >= len(data):
            return None
        try:
            return look(data, start)
        except (IndexError, struct.error):  # the file ends within a header: the decoder says so
            return None


def is_bare_wav(path: Path) -> bool:
    """Whether a file is a WAV with nothing but sound, and so without tags. Raises OSError."""
    with FileBytes(path) as data:
        is_wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
        return is_wav and all(name in _WAV_SOUND for name, _ in _walk(data, 12, _wav_header))


def _missing(count: int) -> str:
    return f"is cut short ({count} bytes are missing)"


# --- WAV, RF64, Wave64, AIFF, AU, CAF: one chunk contains the audio ---


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """The chunk with the audio data."""

    start: int  # of the audio data
    size: int | None  # length according to the header; None for "up to the end"
    bits: int  # of the size field, which wraps around
    to_size: Callable[[int], Mapping[int, bytes]]  # patches for a size
    # Patches that make a decoder read to the end; None if the size of what there is does.
    open_ended: Mapping[int, bytes] | None = None
    frames: int | None = None  # samples per channel, if a chunk states them, as for compressed audio


@dataclass(frozen=True, kw_only=True)
class _Chunked:
    """How a container is divided into chunks."""

    find_sound: Callable[[FileBytes, int], _Chunk | None]
    header: Callable[
        [FileBytes, int], tuple[bytes, int] | None
    ]  # name and length of a chunk, with its header
    magic: re.Pattern[bytes]

    def __call__(self, data: FileBytes, start: int) -> Layout | None:
        parts: list[Part] = []
        end = end_of_sound(data, start)
        position: int | None = start
        fault = ""
        while position is not None:
            chunk = self.find_sound(data, position)
            if chunk is None:
                break
            size = chunk.size
            available = max(0, end - chunk.start)
            following = None
            patches: Mapping[int, bytes] = {}
            if size is not None:
                claimed = size
                for whole in range(claimed, available + 1, 1 << chunk.bits):
                    tail, following = self._tail(data, chunk.start + whole, end)
                    if tail:
                        size = whole
                        break
                else:  # the header is wrong, or the file is truncated, perhaps with another one after it
                    following = self._find_next(data, chunk.start, end)
                    size = available if following is None else following - chunk.start
                    if claimed > size:
                        fault = fault or _missing(claimed - size)
                if size != claimed:
                    patches = chunk.to_size(size)
            else:
                size, patches = available, chunk.open_ended or chunk.to_size(len(data) - chunk.start)
            stop = chunk.start + size if patches or following else end
            parts.append(Part(ranges=((position, stop),), patches=patches, frames=chunk.frames))
            position = following if following is not None and following > position else None
        if not parts:
            return None
        by_name = len(parts) == 1 and not parts[0].patches
        return Layout(parts=tuple(parts), fault=fault, by_name=by_name)

    def _find_next(self, data: FileBytes, start: int, end: int) -> int | None:
        """Find where another file of this kind begins within the audio data."""
        found = data.search(self.magic, _MAGIC_BYTES, start, end)
        return found if found >= 0 else None

    def _tail(self, data: FileBytes, at: int, end: int) -> tuple[bool, int | None]:
        """Return whether the rest after the audio is something else, and where another file begins in it."""
        for position in (
            at,
            at + at % 2,
        ):  # the padding byte that makes the length even; some programs omit it
            while position < end:
                if self.magic.match(data[position : position + _MAGIC_BYTES]):
                    return True, position
                found = self.header(data, position)
                if found is None or not _CHUNK_NAME.match(found[0]) or position + found[1] > end + 1:
                    break
                position += found[1]
            else:
                return True, None
            if end - position <= _PADDING and not data[position:end].strip(b"\0"):
                return True, None
        return False, None


def _find_wav(data: FileBytes, start: int) -> _Chunk | None:
    order = ">" if data[start : start + 4] == b"RIFX" else "<"
    large: int | None = None
    at = start + 12
    while at + 8 <= len(data):
        name, size = struct.unpack(f"{order}4sI", data[at : at + 8])
        if name == b"ds64":
            large = struct.unpack("<Q", data[at + 16 : at + 24])[0]
        if name == b"data":
            break
        at += 8 + size + size % 2
    else:
        return None
    field_at = at + 4
    # Patched to RIFF, whose reader takes all data there is; it skips the chunk ds64.
    riff = {} if large is None else {start: b"RIFF"}
    open_ended = {**riff, field_at: b"\xff" * 4}

    def to_size(size: int) -> Mapping[int, bytes]:
        return {**riff, field_at: struct.pack(f"{order}I", min(size, _UNKNOWN_32))}

    claimed: int | None = size
    bits = 32
    if large is not None and size == _UNKNOWN_32:
        claimed, bits = (large or None if large < 1 << 62 else None), 64
    elif any(low <= size <= high for low, high in _STREAMED_32):
        claimed = None
    return _Chunk(start=at + 8, size=claimed, bits=bits, open_ended=open_ended, to_size=to_size)


def _wav_header(data: FileBytes, at: int) -> tuple[bytes, int] | None:
    if at + 8 > len(data):
        return None
    name, size = struct.unpack("<4sI", data[at : at + 8])
    return name, 8 + size + size % 2


_W64_REST = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


def _find_w64(data: FileBytes, start: int) -> _Chunk | None:
    at = start + 40
    while at + 24 <= len(data):
        size = struct.unpack("<Q", data[at + 16 : at + 24])[0]
        if data[at : at + 16] == b"data" + _W64_REST:
            break
        if size < 24:
            return None
        at += (size + 7) // 8 * 8
    else:
        return None

    def to_size(size: int) -> Mapping[int, bytes]:
        return {at + 16: struct.pack("<Q", size + 24)}

    claimed = size - 24 if 24 <= size < 1 << 62 else None
    return _Chunk(start=at + 24, size=claimed, bits=64, to_size=to_size)


def _w64_header(data: FileBytes, at: int) -> tuple[bytes, int] | None:
    at = (at + 7) // 8 * 8
    if at + 24 > len(data) or data[at + 4 : at + 16] != _W64_REST:
        return None
    size = struct.unpack("<Q", data[at + 16 : at + 24])[0]
    return data[at : at + 4], max(24, (size + 7) // 8 * 8)


def _walk(
    data: FileBytes, at: int, header: Callable[[FileBytes, int], tuple[bytes, int] | None]
) -> Iterator[tuple[bytes, int]]:
    """Yield the name and position of each chunk from `at` on."""
    while chunk := header(data, at):
        yield chunk[0], at
        at += chunk[1]


def _find_aiff(data: FileBytes, start: int) -> _Chunk | None:
    common = None
    for name, at in _walk(data, start + 12, _aiff_header):
        if name == b"SSND":
            break
        if name == b"COMM":
            common = at + 8
    else:
        return None
    size = int.from_bytes(data[at + 4 : at + 8], "big")
    channels, bits = struct.unpack(">H4xH", data[common : common + 8]) if common else (0, 0)
    frame = channels * ((bits + 7) // 8)

    def to_size(size: int) -> Mapping[int, bytes]:
        patches = {at + 4: struct.pack(">I", min(size + 8, _UNKNOWN_32))}
        if common and frame:
            patches[common + 2] = struct.pack(">I", min(size // frame, _UNKNOWN_32))
        return patches

    claimed: int | None = max(0, size - 8)
    if size == 0 or any(low <= size <= high for low, high in _STREAMED_32):
        claimed = None
    return _Chunk(start=at + 16, size=claimed, bits=32, to_size=to_size)


def _aiff_header(data: FileBytes, at: int) -> tuple[bytes, int] | None:
    if at + 8 > len(data):
        return None
    name, size = struct.unpack(">4sI", data[at : at + 8])
    return name, 8 + size + size % 2


def _find_au(data: FileBytes, start: int) -> _Chunk | None:
    order = ">" if data[start : start + 4] == b".snd" else "<"
    if start + 24 > len(data):
        return None
    offset, size = struct.unpack(f"{order}II", data[start + 4 : start + 12])

    def to_size(size: int) -> Mapping[int, bytes]:
        return {start + 8: struct.pack(f"{order}I", min(size, _UNKNOWN_32))}

    claimed = None if any(low <= size <= high for low, high in _STREAMED_32) else size
    return _Chunk(
        start=start + offset, size=claimed, bits=32, open_ended=to_size(_UNKNOWN_32), to_size=to_size
    )


def _find_caf(data: FileBytes, start: int) -> _Chunk | None:
    at = start + 8
    while at + 12 <= len(data):
        name, size = struct.unpack(">4sq", data[at : at + 12])
        if name == b"data":
            break
        if size < 0:
            return None
        at += 12 + size
    else:
        return None

    def to_size(size: int) -> Mapping[int, bytes]:
        return {at + 4: struct.pack(">q", size + 4)}

    claimed = size - 4 if size >= 4 else None
    return _Chunk(start=at + 16, size=claimed, bits=64, to_size=to_size, frames=_count_caf(data, start))


def _count_caf(data: FileBytes, start: int) -> int | None:
    """Return the least number of frames that the packet table of compressed audio allows."""
    per_packet = 0
    for name, at in _walk(data, start + 8, _caf_header):
        if name == b"desc":
            per_packet = int.from_bytes(data[at + 32 : at + 36], "big")
        if name == b"pakt":
            frames = int.from_bytes(data[at + 20 : at + 28], "big")
            # How full the last packet is may be unknown.
            whole_packets = per_packet and frames % per_packet == 0
            return frames - per_packet + 1 if whole_packets else frames
    return None


def _caf_header(data: FileBytes, at: int) -> tuple[bytes, int] | None:
    if at + 12 > len(data):
        return None
    name, size = struct.unpack(">4sq", data[at : at + 12])
    return (name, 12 + size) if size >= 0 else None


def _survey_voc(data: FileBytes, start: int) -> Layout | None:
    """Creative Voice: blocks up to one of type 0, which may be missing."""
    at = start + int.from_bytes(data[start + 20 : start + 22], "little")
    while at + 4 <= len(data) and data[at]:
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "little")
    fault = ""
    if at > len(data):
        fault = _missing(at - len(data))
    elif data[at + 1 : at + 1 + _PADDING].strip(b"\0"):
        fault = f"is damaged (the {len(data) - at - 1} bytes after its end marker cannot be read)"
    return Layout(parts=(Part(ranges=((start, len(data)),)),), fault=fault, by_name=True)


# --- FLAC ---


def _survey_flac(data: FileBytes, start: int) -> Layout | None:
    """Compare the length in each header with the number of the last frame; detect concatenated files."""
    end = end_of_sound(data, start)
    starts = [start] if data[start + 4 : start + 8] in (b"\0\0\0\x22", b"\x80\0\0\x22") else []
    at = start
    while (at := data.find(b"fLaC\0\0\0\x22", at + 4)) >= 0:  # finding eight bytes is twice as fast as four
        starts.append(at)
    if not starts:
        return None
    parts, fault = [], ""
    for at, stop in zip(starts, [*starts[1:], end], strict=True):
        stop = _without_tag_before(data, at, stop)
        packed = int.from_bytes(data[at + 18 : at + 26], "big")  # rate, channels, bits, samples
        rate, announced = packed >> 44, packed & (1 << 36) - 1
        found = _count_flac(data, at, stop)
        if found is None and announced:  # no frame at all
            found = 0
        patches: dict[int, bytes] = {}
        if found is not None and found != announced:
            if found < announced and rate:
                fault = f"is cut short ({share(found / rate, announced / rate)})"
            patches[at + 18] = (packed & ~((1 << 36) - 1) | found).to_bytes(8, "big")
        parts.append(Part(ranges=((at, stop),), patches=patches, frames=found))
    by_name = len(parts) == 1 and not parts[0].patches and (start, end) == (0, len(data))
    return Layout(parts=tuple(parts), fault=fault, by_name=by_name)


def _without_tag_before(data: FileBytes, start: int, end: int) -> int:
    """Return where the audio of a concatenated file ends, before its tags and the next file's ID3v2 tag."""
    low = max(start, end - (1 << 20))
    tail = data[low:end]
    tag = tail.rfind(b"ID3")
    if tag >= 0 and skip_tags(tail, tag) == len(tail):
        tail = tail[:tag]
    return low + end_of_sound(tail)


def rest_of_flac(path: Path, part: Part, decoded: int) -> Part | None:
    """Return what a decoder that has failed after `decoded` samples of a FLAC part can read on; None if it cannot.

    Raises OSError.
    """
    with FileBytes(path) as data:
        start, end = part.ranges[0][0], part.ranges[-1][1]
        audio = _first_flac_frame(data, start, end)
        sync = data[audio : audio + 2]
        block = 1 if sync[1] & 1 else int.from_bytes(data[start + 10 : start + 12], "big")
        at = max(audio, part.ranges[-1][0])
        if begun := _flac_frame(data[at : at + 16]):
            decoded += begun[0] * block
        while (at := data.find(sync, at + 1, end)) >= 0:
            if (found := _flac_frame(data[at : at + 16])) and found[0] * block >= decoded:
                return replace(part, ranges=((start, audio), (at, end)), frames=None)
    return None


def _first_flac_frame(data: FileBytes, start: int, end: int) -> int:
    at, last = start + 4, False
    while not last and at + 4 <= end:
        last = bool(data[at] & 0x80)
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return at


def _count_flac(data: FileBytes, start: int, end: int) -> int | None:
    """Count samples up to the end of the last frame that begins before `end`; None if there is none."""
    block = int.from_bytes(data[start + 10 : start + 12], "big")  # maximum block size, or the fixed one
    at = _first_flac_frame(data, start, end)
    sync = data[at : at + 2]
    if sync not in (b"\xff\xf8", b"\xff\xf9"):
        return None
    low = max(at, end - _LAST_FLAC_FRAME)
    tail = data[low:end]
    place = len(tail)
    while (place := tail.rfind(sync, 0, place)) >= 0:
        if (found := _flac_frame(data[low + place : low + place + 16])) is not None:
            number, samples = found
            return number + samples if sync[1] & 1 else number * block + samples
    return None


def _flac_frame(head: bytes) -> tuple[int, int] | None:
    """Return the number in a frame's header, and its samples; None if the header's checksum is wrong."""
    if len(head) < 6:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    extra = (8 - (head[4] ^ 0xFF).bit_length()) - 1 if head[4] >= 0xC0 else 0  # as in UTF-8
    if head[4] in range(0x80, 0xC0) or extra > 6 or rate_code == 15 or head[3] & 1 or not size_code:
        return None
    number = head[4] & (0x7F if not extra else 0x3F >> extra)
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    at = 5 + extra
    samples = {1: 192}.get(
        size_code, 576 << (size_code - 2) if size_code < 6 else 256 << (size_code - 8 & 15)
    )
    if size_code in (6, 7):
        samples = int.from_bytes(head[at : at + size_code - 5], "big") + 1
        at += size_code - 5
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    check = 0
    for byte in head[:at]:
        check ^= byte
        for _ in range(8):
            check = (check << 1 ^ (0x107 if check & 0x80 else 0)) & 0x1FF
    return (number, samples) if at < len(head) and check == head[at] else None


# --- Ogg ---


@dataclass
class _Link:
    """One of the files that a chained Ogg file is made of."""

    start: int
    serials: dict[int, int] = field(default_factory=dict)  # stream -> its last page's number
    open: set[int] = field(default_factory=set)  # streams whose last page has not been seen
    only_beginnings: bool = True


def _survey_ogg(data: FileBytes, start: int) -> Layout | None:
    """Scan all pages for links, checksums, gaps and ends."""
    end = end_of_sound(data, start)
    links: list[_Link] = []
    stops: list[int] = []
    bad, missing_pages, cut = 0, 0, 0
    at = start
    while at < end:
        if at + 27 > end or data[at : at + 4] != b"OggS":
            after = data.find(b"OggS", at + 1, end)
            if not (links and after < 0 and end - at <= _PADDING and data.skip_zeros(at, end) == end):
                if after < 0:
                    cut = end - at
                elif not are_tags(data, at, after):
                    bad += after - at
            elif after < 0:
                end = at
            at = after if after >= 0 else end
            continue
        _, _, flags, _, serial, number, checksum, segments = _OGG_PAGE.unpack(data[at : at + 27])
        length = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        page = data[at : min(end, at + length)]
        if _ogg_checksum(page) != checksum:
            if at + length > end:
                cut = end - at
                break
            after = data.find(b"OggS", at + 1, end)
            after = end if after < 0 else after
            bad += after - at
            at = after
            continue
        if flags & _BOS:
            if not links or not links[-1].only_beginnings:
                if links:
                    stops.append(at)
                links.append(_Link(start=at))
            links[-1].open.add(serial)
        elif not links:
            return None  # the beginning is missing
        else:
            links[-1].only_beginnings = False
            expected = links[-1].serials.get(serial, -1) + 1
            if serial in links[-1].serials and number > expected:
                missing_pages += number - expected
        links[-1].serials[serial] = number
        if flags & _EOS:
            links[-1].open.discard(serial)
        at += length
    if not links:
        return None
    stops.append(end)
    fault = ""
    if bad:
        fault = f"is damaged ({bad} bytes are not audio)"
    elif missing_pages:
        fault = f"is damaged ({missing_pages} pages are missing)"
    elif cut or any(link.open for link in links):
        fault = "is cut short (its end is missing)"
    parts = tuple(Part(ranges=((link.start, stop),)) for link, stop in zip(links, stops, strict=True))
    simple = all(len(link.serials) == 1 for link in links)
    return Layout(
        parts=parts, fault=fault, by_name=len(parts) == 1 and start == 0 and not bad, readable=simple
    )


def _ogg_checksum(page: bytes) -> int:
    """Compute Ogg's CRC with zlib's: the bits of each byte and of the result are reversed, and it starts at 0."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_BIT_REVERSED)
    check = zlib.crc32(mirrored, _UNKNOWN_32) ^ _UNKNOWN_32
    return int.from_bytes(check.to_bytes(4, "little").translate(_BIT_REVERSED), "big")


_SURVEYS: dict[str, Callable[[FileBytes, int], Layout | None]] = {
    **SURVEYS,
    "wav": _Chunked(
        find_sound=_find_wav,
        header=_wav_header,
        magic=re.compile(rb"(?:RIFF|RIFX|RF64|BW64)....WAVE", re.DOTALL),
    ),
    "w64": _Chunked(find_sound=_find_w64, header=_w64_header, magic=re.compile(rb"riff\x2e\x91\xcf\x11")),
    "aiff": _Chunked(
        find_sound=_find_aiff, header=_aiff_header, magic=re.compile(rb"FORM....AIF[FC]", re.DOTALL)
    ),
    "au": _Chunked(
        find_sound=_find_au,
        header=lambda data, at: None,
        magic=re.compile(rb"\.snd\0\0.{6}\0\0\0[\x01-\x1f]", re.DOTALL),
    ),
    "caf": _Chunked(find_sound=_find_caf, header=_caf_header, magic=re.compile(rb"caff\0\x01")),
    "flac": _survey_flac,
    "mp3": survey_mp3,
    "ogg": _survey_ogg,
    "voc": _survey_voc,
}
