"""Scan the frames of an MP3 (or MP1, MP2) file; see truncation.py.

Frames: ISO/IEC 11172-3, 2.4.1.3, and 13818-3; the Xing/Info header: Gabriel Bouvigne, "MP3 Info Tag revision 1".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tfswa_sep.audio.containers import end_of_sound, skip_tags
from tfswa_sep.audio.file_parts import FileBytes, Layout, Part, are_tags, share

_KBITS = {  # (version is 1, layer) -> kbit/s by index
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}  # version's bits
_DECODER_DELAY = 529  # samples
_HEAD = 40  # bytes of a frame up to the end of an info header's name
_STRAY_BYTES = 1 << 13  # tolerated before the first frame and after the last: part of a frame, padding


def _sizes() -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Map a header's second and third bytes to (bytes per frame, samples per channel, Hz)."""
    for version, rates in _RATES.items():
        for layer in (1, 2, 3):
            samples = 384 if layer == 1 else 1152 if layer == 2 or version == 3 else 576
            unit = 4 if layer == 1 else 1
            for index, kbits in enumerate(_KBITS[version == 3, layer], 1):
                for rate_index, rate in enumerate(rates):
                    for padding in (0, 1):
                        size = (samples // 8 // unit * kbits * 1000 // rate + padding) * unit
                        second = 0xE0 | version << 3 | (4 - layer) << 1
                        for low in range(4):
                            third = index << 4 | rate_index << 2 | padding << 1 | low & 1
                            yield (second | low >> 1) << 8 | third, (size, samples, rate)


_HEADERS = dict(_sizes())


@dataclass
class _Run:
    """Consecutive frames of the same kind."""

    kind: tuple[int, int, bool]
    samples: int  # per frame and channel
    rate: int  # Hz
    side_bytes: int
    ranges: list[list[int]] = field(default_factory=list)
    frames: int = 0  # without the frame that contains the info header
    header: tuple[int, bytes] | None = None  # where, and what


def survey_mp3(data: FileBytes, start: int) -> Layout | None:
    """Count the frames and compare with the info headers."""
    end = end_of_sound(data, start)
    runs: list[_Run] = []
    damage: list[tuple[float, int]] = []  # seconds, bytes
    at = start
    seconds = 0.0
    in_sync = False
    while at + 4 <= end:
        head = data[at : at + _HEAD]
        header = _HEADERS.get(head[1] << 8 | head[2]) if head[0] == 0xFF else None
        if header is not None:
            size, samples, rate = header
            kind = (head[1] & 0xFE, head[2] & 0x0C, head[3] >= 0xC0)
            # A single header can be a coincidence, where none is expected or if it is of another kind.
            if not (in_sync and runs and runs[-1].kind == kind) and not _is_followed(data, at, end, kind):
                header = None
        if header is None:
            after = _find_frame(data, at, end)
            lost = min(after, end) - at
            if not are_tags(data, at, after) and not (lost <= _STRAY_BYTES and (not runs or after >= end)):
                damage.append((seconds, lost))
            at, in_sync = after, False
            continue
        if at + size > end:
            break
        run = runs[-1] if runs else None
        side = 4 + (17 if kind[2] else 32) if kind[0] & 8 else 4 + (9 if kind[2] else 17)
        found = head[side : side + 4] in (b"Xing", b"Info") and not any(head[4:side])
        found = found or head[36:40] == b"VBRI"
        if run is None or run.kind != kind or found:
            run = _Run(kind=kind, samples=samples, rate=rate, side_bytes=side, ranges=[[at, at]])
            runs.append(run)
        if found:
            run.header = (at, data[at : at + size])
        else:
            run.frames += 1
            seconds += samples / rate
        if run.ranges[-1][1] == at:
            run.ranges[-1][1] = at + size
        else:
            run.ranges.append([at, at + size])
        at += size
        in_sync = True
    if not runs:
        return None
    parts, faults = [], []
    for run in runs:
        part, fault = _describe(run)
        parts.append(part)
        faults.append(fault)
    fault = next(filter(None, faults), "")
    if damage:
        lost = sum(count for _, count in damage)
        fault = f"is damaged ({lost} bytes are not MP3, the first at {damage[0][0]:.1f} s)"
    first = parts[0]
    by_name = len(parts) == 1 and not first.as_stream and first.ranges[0][0] == start
    return Layout(parts=tuple(parts), fault=fault, by_name=by_name)


def _describe(run: _Run) -> tuple[Part, str]:
    """Return a run as a part, and whether it is truncated."""
    samples = run.frames * run.samples
    ranges = tuple((low, high) for low, high in run.ranges)
    if run.header is None:
        return Part(ranges=ranges, frames=samples, slack=3 * run.samples, as_stream=True), ""
    at, frame = run.header
    present = sum(high - low for low, high in ranges)
    count_at = size_at = None
    delay = padding = 0
    if frame[36:40] == b"VBRI":
        size_at, count_at = 46, 50
    else:
        place = run.side_bytes + 8
        flags = int.from_bytes(frame[run.side_bytes + 4 : place], "big")
        for bit, length in ((1, 4), (2, 4), (4, 100), (8, 4)):
            if flags & bit:
                count_at = place if bit == 1 else count_at
                size_at = place if bit == 2 else size_at
                place += length
        if len(frame) >= place + 24 and frame[place]:
            delay = frame[place + 21] << 4 | frame[place + 22] >> 4
            padding = (frame[place + 22] & 15) << 8 | frame[place + 23]
    if delay:
        samples = max(0, samples - delay - _DECODER_DELAY - max(0, padding - _DECODER_DELAY))
    part = Part(ranges=ranges, frames=samples, slack=3 * run.samples)
    if count_at is None:
        return Part(ranges=ranges, frames=samples, slack=part.slack, as_stream=True), ""
    announced = int.from_bytes(frame[count_at : count_at + 4], "big")
    size = int.from_bytes(frame[size_at : size_at + 4], "big") if size_at is not None else None
    fault = ""
    lacking = announced - run.frames  # some encoders count the header's frame too
    if lacking > 1 or (lacking == 1 and size is not None and present < size):
        per_frame = run.samples / run.rate
        fault = f"is cut short ({share(run.frames * per_frame, announced * per_frame)})"
    if len(ranges) == 1 and lacking in (0, 1) and not fault:
        return part, ""
    patches = {at + count_at: run.frames.to_bytes(4, "big")}
    if size_at is not None:
        patches[at + size_at] = min(present, 0xFFFF_FFFF).to_bytes(4, "big")
    return Part(ranges=ranges, patches=patches, frames=samples, slack=part.slack, as_stream=True), fault


def _is_followed(data: FileBytes, at: int, end: int, kind: tuple[int, int, bool]) -> bool:
    """Whether the frame at `at` is followed by another of its kind, or by the end of the audio."""
    for _ in range(2):
        head = data[at : at + 4]
        header = _HEADERS.get(head[1] << 8 | head[2]) if head[0] == 0xFF else None
        if header is None:
            return False
        at += header[0]
        if at + 4 > end:
            return at <= end
        if data[at : at + 3] in (b"ID3", b"TAG", b"APE"):
            return True
    head = data[at : at + 4]
    return (head[1] & 0xFE, head[2] & 0x0C, head[3] >= 0xC0) == kind


def _find_frame(data: FileBytes, at: int, end: int) -> int:
    """Find the next frames after other data; return `end` if there are none."""
    at = skip_tags(data, at)
    while (at := data.find(b"\xff", at, end)) >= 0 and at + 4 <= end:
        head = data[at : at + 4]
        if head[1] << 8 | head[2] in _HEADERS:
            kind = (head[1] & 0xFE, head[2] & 0x0C, head[3] >= 0xC0)
            if _is_followed(data, at, end, kind):
                return at
        at += 1
    return end
