"""A file's audio as parts that are decoded one after the other; see truncation.py."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from tfswa_sep.audio.containers import end_of_sound, skip_tags
from tfswa_sep.errors import InputError

_BLOCK = 1 << 20  # bytes that are read at once
_BEHIND = 1 << 16  # and some before them, which a scan may look at again


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
        self.error: OSError | None = None  # that ended the data early: libsndfile's callbacks cannot raise it

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
                try:
                    self._file.seek(at)
                    data = bytearray(self._file.read(min(len(buffer), end - at)))
                except OSError as error:
                    self.error = error
                    return 0
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


class FileBytes:
    """A file's bytes, to be indexed and searched like `bytes`, but read block by block.

    Unlike a mapped file, it takes little memory, and a file that shrinks raises an error instead of ending the process.

    Args:
        path: The file.

    Raises:
        InputError: The file has become shorter.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size
        self._start, self._end, self._block = 0, 0, b""

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> bytes: ...
    def __getitem__(self, at: int | slice) -> int | bytes:
        if isinstance(at, slice):
            start, stop = at.start or 0, self._size if at.stop is None else at.stop
            if not (self._start <= start and stop <= self._end):
                start, stop = max(0, start), min(stop, self._size)
                if stop - start > _BLOCK:
                    return self._read(start, stop)
                if not (self._start <= start and stop <= self._end):
                    self._load(start)
            return self._block[max(0, start - self._start) : max(0, stop - self._start)]
        if not self._start <= at < self._end:
            if not 0 <= at < self._size:
                raise IndexError(at)
            self._load(at)
        return self._block[at - self._start]

    def find(self, pattern: bytes, start: int = 0, end: int | None = None) -> int:
        """As bytes.find, with offsets that are not negative."""
        end = self._size if end is None else min(end, self._size)
        while start + len(pattern) <= end:
            if not self._start <= start <= self._end - len(pattern):
                self._load(start)
            found = self._block.find(pattern, start - self._start, end - self._start)
            if found >= 0:
                return self._start + found
            start = self._end - len(pattern) + 1
        return -1

    def search(self, pattern: re.Pattern[bytes], longest: int, start: int, end: int) -> int:
        """Where a pattern that matches at most `longest` bytes begins; -1 if it does not occur."""
        while start < end:
            self._load(start)
            if found := pattern.search(self._block, start - self._start, end - self._start):
                return self._start + found.start()
            if self._end >= end:
                break
            start = self._end - longest + 1
        return -1

    def skip_zeros(self, start: int, end: int) -> int:
        """Where the first byte that is not zero is; `end` if there is none."""
        for at in range(start, end, _BLOCK):
            block = self[at : min(at + _BLOCK, end)]
            if rest := block.lstrip(b"\0"):
                return at + len(block) - len(rest)
        return end

    def _load(self, at: int) -> None:
        at = max(0, min(at, self._size))
        self._start = max(0, at - _BEHIND)
        self._end = min(at + _BLOCK, self._size)
        self._block = self._read(self._start, self._end)

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(end - start)
        while len(data) < end - start:  # a signal, or the end of the file
            more = self._file.read(end - start - len(data))
            if not more:
                raise InputError(
                    f"{self._path} became shorter while it was read: wait until it is complete, and try again"
                )
            data += more
        return data

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def share(found: float, announced: float) -> str:
    """Say how much of a truncated file is present, in seconds."""
    digits = 1 if announced - found >= 0.1 else 3
    return f"{found:.{digits}f} s of the {announced:.{digits}f} s in its header are present"


def are_tags(data: FileBytes, start: int, end: int) -> bool:
    """Whether the bytes from `start` to `end` consist of tags only, apart from zeros after a tag or at the end."""
    at = skip_tags(data, start)
    if at > start:
        at = data.skip_zeros(at, end)
    return at >= end or end_of_sound(data, at, end) == at
