"""A file's audio as parts that are decoded one after the other; see layout.py."""

from __future__ import annotations

import io
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tfswa_sep.audio.containers import end_of_sound, skip_tags

_KEPT = 1 << 25  # bytes of a mapped file that stay in memory


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of audio that one decoder reads from start to end."""

    ranges: tuple[tuple[int, int], ...]  # bytes of the file, from and to
    patches: Mapping[int, bytes] = field(default_factory=dict)  # offset in the file -> corrected header bytes
    frames: int | None = None  # samples per channel, if they can be counted
    slack: int = 0  # how many of these a decoder may skip
    as_stream: bool = False  # must be read from a pipe, or the decoder would guess a length and stop there


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parts of a file, and any damage."""

    parts: tuple[Part, ...]
    fault: str = ""  # "is cut short (...)", "is damaged (...)"
    by_name: bool = False  # an ordinary file, which can be read directly
    readable: bool = True  # whether libsndfile may read it; else the parts are only counted


class View(io.RawIOBase):
    """A part as a file."""

    def __init__(self, path: Path, part: Part) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._part = part
        self._at = 0
        self._length = sum(end - start for start, end in part.ranges)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position in the part."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the part."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` up to the end of the current range."""
        skipped = 0
        for start, end in self._part.ranges:
            if self._at < skipped + end - start:
                at = start + self._at - skipped
                self._file.seek(at)
                data = bytearray(self._file.read(min(len(buffer), end - at)))
                for place, patch in self._part.patches.items():
                    low, high = max(at, place), min(at + len(data), place + len(patch))
                    if low < high:
                        data[low - at : high - at] = patch[low - place : high - place]
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            skipped += end - start
        return 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class Walker:
    """Releases the pages of a mapped file that have been scanned, which would count as this process's memory."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._next = _KEPT

    def passed(self, at: int) -> None:
        """Report that nothing before `at` is needed any more."""
        if at >= self._next:
            self._next = at + _KEPT
            if hasattr(mmap, "MADV_DONTNEED"):
                self._data.madvise(mmap.MADV_DONTNEED, 0, at // mmap.PAGESIZE * mmap.PAGESIZE)

    def find(self, pattern: bytes, start: int) -> int:
        """As bytes.find."""
        while start < len(self._data):
            self.passed(start)
            found = self._data.find(pattern, start, start + _KEPT + len(pattern) - 1)
            if found >= 0:
                return found
            start += _KEPT
        return -1


def share(found: float, announced: float) -> str:
    """Say how much of a truncated file is present, in seconds."""
    digits = 1 if announced - found >= 0.1 else 3
    return f"{found:.{digits}f} s of the {announced:.{digits}f} s in its header are present"


def are_tags(data: bytes) -> bool:
    """Whether the bytes consist of tags only, apart from zeros at the end."""
    at = skip_tags(data, 0)
    rest = data[at:].lstrip(b"\0") if at else data
    return not rest or end_of_sound(rest) == 0
