"""Detect truncation, concatenation and damage in the containers that ffmpeg reads; see truncation.py.

Formats: ISO/IEC 14496-12 (MP4), RFC 9559 (Matroska), Microsoft's AVI and ASF specifications, Adobe's FLV
specification, the formats of WavPack 4 and True Audio, ISO/IEC 13818-7 (ADTS).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tfswa_sep.audio.containers import end_of_sound
from tfswa_sep.audio.file_parts import FileBytes, Layout, Part, are_tags

_PADDING = 1 << 16  # zero bytes tolerated after the last box
_BOX_NAME = re.compile(rb"[A-Za-z0-9_ \xa9-]{4}")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_FLV_TAGS = (8, 9, 15, 18)


def missing(count: int) -> str:
    """Describe a file that ends too early."""
    return f"is cut short ({count} bytes are missing)"


def joined(count: int) -> str:
    """Describe concatenated files in a format whose decoders stop after the first."""
    return f"is {count} files joined into one, and only the first can be read"


def damaged(count: int) -> str:
    """Describe bytes that are not part of the container."""
    return f"is damaged ({count} bytes are not audio)"


def _layout(data: FileBytes, fault: str, frames: int | None = None) -> Layout:
    part = Part(ranges=((0, len(data)),), frames=frames)
    return Layout(parts=(part,), fault=fault, by_name=True, readable=False)


def _behind(data: FileBytes, at: int, end: int) -> str:
    """Describe what follows the last box."""
    rest = data[at : min(end, at + _PADDING)]
    return "" if at >= end or not rest.strip(b"\0") or are_tags(data, at, end) else damaged(end - at)


def survey_mov(data: FileBytes, start: int) -> Layout:
    """Scan the top-level boxes."""
    at, end, indexes = start, end_of_sound(data, start), 0
    fault = ""
    while at + 8 <= end and _BOX_NAME.match(data[at + 4 : at + 8]):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:
            size = end - at
        if size < 8:
            break
        indexes += name == b"moov"
        at += size
    if at > end:
        fault = missing(at - end)
    elif indexes > 1:
        fault = joined(indexes)
    else:
        fault = _behind(data, at, end)
    return _layout(data, fault)


def survey_matroska(data: FileBytes, start: int) -> Layout:
    """Compare the segment's size with the file's, and look for a second one."""
    at, end, segments = start, end_of_sound(data, start), 0
    while data[at : at + 4] == _EBML:
        header, unknown = _ebml_size(data, at + 4)
        at += 4 + header if not unknown else 4
        if data[at : at + 4] != _SEGMENT:
            break
        segments += 1
        size, unknown = _ebml_size(data, at + 4)
        if unknown:
            following = data.find(_EBML, at)
            while following >= 0 and not re.search(rb"matroska|webm", data[following : following + 64]):
                following = data.find(_EBML, following + 1)
            at = following if following >= 0 else end
        else:
            at += 4 + size
    if at > end:
        return _layout(data, missing(at - end))
    return _layout(data, joined(segments) if segments > 1 else _behind(data, at, end))


def _ebml_size(data: FileBytes, at: int) -> tuple[int, bool]:
    """Return an element's size including its size field, and whether the size is unknown."""
    first = data[at] if at < len(data) else 0xFF
    length = 9 - first.bit_length()
    if length > 8:
        return 1, True
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return value + length, value == (1 << 7 * length) - 1


def survey_avi(data: FileBytes, start: int) -> Layout:
    """Scan the top-level chunks (one AVI, then AVIX if it is large) and the chunks within them."""
    at, end, files = start, end_of_sound(data, start), 0
    while data[at : at + 4] == b"RIFF" and data[at + 8 : at + 11] == b"AVI":
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        files += data[at + 11 : at + 12] != b"X"
        if not size or size >= 0xFFFF_FF00:  # written as a stream
            at = end
            break
        stop = min(end, at + 8 + size)
        inner = at + 12
        while inner + 8 <= stop:
            name = data[inner : inner + 4]
            if not _BOX_NAME.match(name):
                return _layout(data, f"is damaged (at byte {inner} of {len(data)})")
            length = int.from_bytes(data[inner + 4 : inner + 8], "little")
            inner += 12 if name == b"LIST" else 8 + length + length % 2
        at += 8 + size + size % 2
    if at > end + 1:
        return _layout(data, missing(at - end))
    return _layout(data, joined(files) if files > 1 else _behind(data, at, end))


def survey_asf(data: FileBytes, start: int) -> Layout:
    """Compare the file's size with its header."""
    at = data.find(_ASF_PROPERTIES, start, start + (1 << 20))
    size = int.from_bytes(data[at + 40 : at + 48], "little")
    if at < 0 or not size or data[at + 88] & 1:  # unknown in a broadcast
        following = data.find(_ASF, start + 16)
        return _layout(data, joined(2) if following >= 0 else "")
    if size > len(data) - start:
        return _layout(data, missing(size - len(data) + start))
    if data[start + size : start + size + 16] == _ASF:
        return _layout(data, joined(2))
    return _layout(data, _behind(data, start + size, len(data)))


def survey_flv(data: FileBytes, start: int) -> Layout:
    """Scan the tags."""
    at, end = start + int.from_bytes(data[start + 5 : start + 9], "big") + 4, len(data)
    while at + 11 <= end and data[at] & 0x1F in _FLV_TAGS:
        length = 11 + int.from_bytes(data[at + 1 : at + 4], "big")
        if at + length + 4 <= end and int.from_bytes(data[at + length : at + length + 4], "big") != length:
            break
        at += length + 4
    if at > end:
        return _layout(data, missing(at - end))
    if data[at : at + 4] == b"FLV\x01":
        return _layout(data, joined(2))
    return _layout(data, _behind(data, at, end))


def survey_wavpack(data: FileBytes, start: int) -> Layout:
    """Add up the blocks' samples."""
    at, end = start, end_of_sound(data, start)
    total = found = files = 0
    while data[at : at + 4] == b"wvpk" and at + 32 <= end:
        size = 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at + 25] & 8:  # the first block for these samples; others contain more channels
            if int.from_bytes(data[at + 16 : at + 20], "little") == 0 and data[at + 10] == 0:
                total, files = int.from_bytes(data[at + 12 : at + 16], "little"), files + 1
            found += int.from_bytes(data[at + 20 : at + 24], "little")
        at += size
    if at > end:
        return _layout(data, missing(at - end))
    if files > 1:
        return _layout(data, joined(files))
    fault = _behind(data, at, end)
    if not fault and total not in (0xFFFF_FFFF, found):
        fault = f"is cut short (only {found} of {total} samples are present)"
    return _layout(data, fault, found)


def survey_tta(data: FileBytes, start: int) -> Layout:
    """Add up the frames' sizes."""
    end = end_of_sound(data, start)
    rate, samples = (int.from_bytes(data[start + at : start + at + 4], "little") for at in (10, 14))
    count = -(-samples // max(1, 256 * rate // 245))
    table = start + 22
    if table + 4 * count + 4 > end:
        return _layout(data, missing(table + 4 * count + 4 - end))
    sizes = (int.from_bytes(data[at : at + 4], "little") for at in range(table, table + 4 * count, 4))
    at = table + 4 * count + 4 + sum(sizes)
    if at > end:
        return _layout(data, missing(at - end))
    return _layout(data, joined(2) if data[at : at + 4] == b"TTA1" else _behind(data, at, end), samples)


def _adts_frames(data: FileBytes, at: int) -> int:
    """Length of the ADTS frame at `at`; 0 if there is none."""
    head = data[at : at + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or (head[2] >> 2 & 15) > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0


def survey_adts(data: FileBytes, start: int) -> Layout:
    """Scan the frames; a header counts only if another one follows."""
    at, end, lost = start, end_of_sound(data, start), 0
    first = True
    while at + 7 <= end:
        length = _adts_frames(data, at)
        if length and (at + length + 7 > end or _adts_frames(data, at + length)):
            at += length
            first = False
            continue
        after = at + length if length else at  # the last one before damage counts as complete
        while (after := data.find(b"\xff", after + 1, end)) >= 0:
            if (found := _adts_frames(data, after)) and _adts_frames(data, after + found):
                break
        after = after if after >= 0 else end
        if not first and not are_tags(data, at + length, after):
            lost += after - at
        at, first = after, False
    return _layout(data, f"is damaged ({lost} bytes are not AAC)" if lost else "")


SURVEYS: Mapping[str, Callable[[FileBytes, int], Layout]] = {  # by demuxer
    "aac": survey_adts,
    "asf": survey_asf,
    "avi": survey_avi,
    "flv": survey_flv,
    "matroska": survey_matroska,
    "mov": survey_mov,
    "tta": survey_tta,
    "wv": survey_wavpack,
}
