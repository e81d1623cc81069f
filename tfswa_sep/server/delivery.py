"""Finished stems -> other formats, mixes, zips and waveforms. Axis letters: c channel, n samples.

Memory does not depend on the length of a song.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa_sep.audio import tags as tagging
from tfswa_sep.audio.atomic_file import AtomicFile
from tfswa_sep.audio.encode import Encoder
from tfswa_sep.audio.formats import find_format
from tfswa_sep.audio.resample import Samples, resample
from tfswa_sep.audio.stem_mp4 import ORDER, check_stem_file, write_stem_file
from tfswa_sep.constants import BLOCK_SAMPLES
from tfswa_sep.errors import InputError

BUCKET = 1024  # samples per value of a waveform
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
_CHUNK = 1 << 16  # bytes
_HEADER = 1 << 16  # bytes in which the samples of a WAV file begin
_FLOAT = np.dtype("<f4")


def find_samples(file: IO[bytes]) -> int:
    """Where the samples of a WAV file begin, also of one that is still growing. Raises InputError."""
    file.seek(0)
    head = file.read(_HEADER)
    at = 12
    while head[:4] in (b"RIFF", b"RF64") and at + 8 <= len(head):
        if head[at : at + 4] == b"data":
            return at + 8
        size = int.from_bytes(head[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    raise InputError("no samples yet")


def read_chunks(file: IO[bytes], length: int) -> Iterator[bytes]:
    """The next `length` bytes of a file, in pieces; closes it at the end."""
    with file:
        while length > 0 and (chunk := file.read(min(_CHUNK, length))):
            length -= len(chunk)
            yield chunk


def waveform(wav: Path, channels: int, frames: int | None, first: int) -> bytes:
    """Two bytes per BUCKET samples, from bucket `first` on: the peak and the RMS, with 255 for full scale.

    Args:
        wav: A file of 32-bit floats, which may be growing.
        channels: Of the file.
        frames: Samples per channel; None for a growing file, whose last incomplete bucket is left out.
        first: Buckets to skip.
    """
    size = BUCKET * channels * _FLOAT.itemsize  # bytes per bucket
    parts = []
    with wav.open("rb") as file:
        begin = find_samples(file)
        file.seek(begin + first * size)
        left = None if frames is None else frames * channels * _FLOAT.itemsize - first * size
        while left is None or left > 0:
            chunk = file.read(64 * size if left is None else min(64 * size, left))
            if not chunk:
                break
            if left is None:
                chunk = chunk[: len(chunk) // size * size]
            else:
                left -= len(chunk)
                chunk += bytes(-len(chunk) % size)
            parts.append(_measure(np.frombuffer(chunk, _FLOAT).reshape(-1, BUCKET * channels)))
    return b"".join(parts)


def _measure(buckets: NDArray[np.float32]) -> bytes:
    peak = np.abs(buckets).max(axis=1, initial=0)
    rms = np.sqrt(np.mean(np.square(buckets), axis=1)) if len(buckets) else peak
    levels = np.stack([peak, rms], axis=1) * 255
    return bytes(np.rint(np.clip(levels, 0, 255)).astype(np.uint8).data)


def encode(wav: Mapping[Path, float], target: Path, container: str, *, song: Path, title: str) -> None:
    """Write a stem, or a mix of stems, in another format.

    Args:
        wav: Stems' files -> gains.
        target: The file to write.
        container: One of FORMATS.
        song: Where tags and cover come from, if it still exists.
        title: Appended to the tag "title".

    Raises:
        UsageError: The format needs ffmpeg, which is not installed.
        OutputError: The file cannot be written; nothing is left behind.
    """
    audio_format = find_format(container)
    tags, cover = _read_tags(song)
    if "title" in tags:
        tags["title"] = f"{tags['title']} ({title})"
    with ExitStack() as opened:
        files = {opened.enter_context(soundfile.SoundFile(path)): gain for path, gain in wav.items()}
        first = next(iter(files))
        rate, channels, frames = first.samplerate, first.channels, first.frames
        there = audio_format.nearest_rate(rate)
        temporary = AtomicFile(target.parent)
        opened.callback(temporary.remove)
        encoder = Encoder(
            temporary.path,
            target,
            there,
            channels,
            audio_format,
            large=frames * channels * audio_format.sample_bytes > 4e9,
            tags=tags,
            cover=cover,
        )
        opened.callback(encoder.abandon)
        left = frames if there == rate else max(1, round(frames * there / rate))
        for block in resample(_mix(files), rate, there):
            encoder.write(block[:, :left])
            left -= min(left, block.shape[1])
        encoder.write(np.zeros((channels, left), np.float32))
        encoder.close()
        temporary.commit(target)


def _mix(files: Mapping[soundfile.SoundFile, float]) -> Iterator[Samples]:
    while True:
        blocks = [
            file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True).T * np.float32(gain)
            for file, gain in files.items()
        ]
        if not blocks[0].size:
            return
        yield sum(blocks[1:], start=blocks[0])


def encode_stem_file(wav: Mapping[str, Path], target: Path, *, song: Path) -> None:
    """Write four stems as one Native Instruments file; see audio.stem_mp4.

    Raises:
        UsageError: The stems are not its four, or there is no ffmpeg.
        OutputError: It cannot be written; nothing is left behind.
    """
    check_stem_file(tuple(wav))
    tags, cover = _read_tags(song)
    with soundfile.SoundFile(wav[next(iter(ORDER))]) as first:
        rate, frames = first.samplerate, first.frames
    temporary = AtomicFile(target.parent)
    try:
        write_stem_file(temporary.path, wav, rate, frames, tags=tags, cover=cover)
        temporary.commit(target)
    finally:
        temporary.remove()


def _read_tags(song: Path) -> tuple[dict[str, str], bytes | None]:
    """Tags and cover, none if the song is no longer there."""
    if not song.is_file():
        return {}, None
    return tagging.cut_tags(tagging.read_tags(song)), tagging.read_cover(song)


def zip_chunks(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """A zip file as it is made, from (name, file) that may be made meanwhile; nothing is compressed twice."""
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, path in files:
            with path.open("rb") as file, archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as entry:
                while chunk := file.read(_CHUNK):
                    entry.write(chunk)
                    yield buffer.take()
    yield buffer.take()


class _Buffer:
    """What zipfile writes to a pipe."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken
