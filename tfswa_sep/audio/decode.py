"""Read songs: decode in blocks, check every sample, resample as a stream.

soundfile reads wav, flac, ogg, opus, mp3 and aiff; ffmpeg (see ffmpeg.py) reads m4a, video and the rest. A
song that is shorter than its header says is refused unless asked for, never silently cut.
Axis letters: c channel, n samples; sample arrays are float32 at full scale +-1.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import soundfile

from tfswa_sep.audio.ffmpeg import FfmpegDecoder
from tfswa_sep.audio.resample import Samples, resample
from tfswa_sep.audio.truncation import is_ogg_cut_short, missing_mp3_bytes
from tfswa_sep.constants import BLOCK_SAMPLES
from tfswa_sep.errors import InputError, TruncatedError

_SALVAGE_BLOCK = 1024  # of a song that may be cut: a decoder that fails loses the block it was at
MAX_PEAK = 1e6  # +120 dB above full scale: no recording is, and its squares still fit a float
SAMPLE_RATES = (1_000, 768_000)  # samples a second that a song can have
_CUT_TOLERANCE = 0.1  # seconds that may be missing: encoders' delay and padding are counted differently
_UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2^63 - 1 for a stream of unknown length
# A WAV's data size from here on, or 0, stands for "written as a stream, unknown".
_STREAMED_BYTES = 0x7FFF_0000
# What libsndfile says of a size that is larger than the file, in wav, aiff and au.
_DATA_SIZE = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_ADVICE = "copy or download it again, or keep what can be read with --allow-truncated"


class Decoder(Protocol):
    """A file being decoded at its own rate."""

    sample_rate: int
    channels: int
    frames: int | None  # announced, None where the file does not say

    def read(self, frames: int) -> Samples:
        """Up to `frames` next samples as (n, c); n is 0 only at the end. Raises InputError."""
        ...

    def check_whole(self, decoded: int) -> None:
        """Raise TruncatedError if `decoded` samples are not the whole song, as far as can be told by now."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class AudioReader:
    """An open song; use `open_audio`. A context manager; `blocks` can be walked once."""

    def __init__(self, path: Path, decoder: Decoder, *, allow_truncated: bool = False) -> None:
        self.path = path
        self.sample_rate = decoder.sample_rate  # Hz
        self.channels = decoder.channels  # 1 or 2
        self.frames = decoder.frames  # announced samples a channel, None if the file does not say
        self.decoded = 0  # samples a channel decoded so far, at the song's own rate
        self.peak = 0.0  # loudest sample so far
        self.missing = ""  # how it is cut short, if that is allowed and was found
        self._decoder = decoder
        self._allow_truncated = allow_truncated

    def blocks(
        self, rate: int | None = None, channels: int | None = None, block: int = BLOCK_SAMPLES
    ) -> Iterator[Samples]:
        """Yield the song as (channels, n) blocks at `rate` Hz; both default to the song's own.

        A mono song asked for as stereo comes as two equal channels; stereo asked for as mono is averaged.
        Raises InputError for damaged, truncated and empty songs, and for samples that are no numbers.
        """
        return resample(
            self._decode(channels or self.channels, block), self.sample_rate, rate or self.sample_rate
        )

    def _decode(self, channels: int, block: int) -> Iterator[Samples]:
        while len(samples := self._read(block)):
            self._check(samples)
            self.decoded += len(samples)
            if channels != self.channels:
                samples = (
                    np.repeat(samples, channels, 1) if self.channels == 1 else samples.mean(1, keepdims=True)
                )
            yield np.ascontiguousarray(samples.T)
        if not self.decoded:
            raise InputError(f"{self.path} contains no audio (0 samples): choose another file")

    def _read(self, block: int) -> Samples:
        try:
            samples = self._decoder.read(min(block, _SALVAGE_BLOCK) if self._allow_truncated else block)
            if not len(samples):
                self._decoder.check_whole(self.decoded)
        except TruncatedError as error:
            if not self._allow_truncated:
                raise
            self.missing = str(error).removeprefix(f"{self.path} ").partition(": ")[0]
            samples = np.zeros((0, self.channels), np.float32)
        return samples

    def _check(self, samples: Samples) -> None:
        peak = float(np.abs(samples).max())
        self.peak = max(self.peak, peak)
        if peak <= MAX_PEAK:  # False for NaN too
            return
        frame, channel = np.argwhere(~(np.abs(samples) <= MAX_PEAK))[0]
        raise InputError(
            f"{self.path}: sample {self.decoded + frame} of channel {channel + 1} "
            f"({(self.decoded + frame) / self.sample_rate:.3f} s) is {samples[frame, channel]:g}, "
            "which is not a valid audio sample: export the song again"
        )

    def close(self) -> None:
        """Close the file and end a decoder's process."""
        self._decoder.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_audio(path: str | Path, *, downmix: bool = False, allow_truncated: bool = False) -> AudioReader:
    """Open a song of one or two channels; close it after use (`with open_audio(path) as song`).

    downmix: let ffmpeg mix more channels down to two, as their layout wants it.
    allow_truncated: read what is there of a song that is cut short, and say so in the reader's `missing`.
    Raises InputError, in one line that names the file, if it is missing, a folder, empty, not audio, cut
    short (as far as its header tells), of more than two channels, or needs ffmpeg where there is none.
    """
    path = Path(path)
    check_file(path)
    decoder = _open_decoder(path)
    try:
        if decoder.channels > 2:
            if not downmix:
                raise InputError(
                    f"{path} has {decoder.channels} channels, but only mono and stereo can be separated: "
                    "use --downmix to mix it down to stereo"
                )
            decoder.close()
            decoder = FfmpegDecoder(path, channels=2)
        if not SAMPLE_RATES[0] <= decoder.sample_rate <= SAMPLE_RATES[1]:
            raise InputError(
                f"{path} has an unsupported sample rate of {decoder.sample_rate} Hz: export it again"
            )
        if not allow_truncated:
            decoder.check_whole(decoder.frames or 0)  # what the header tells, before anything is separated
    except InputError:
        decoder.close()
        raise
    return AudioReader(path, decoder, allow_truncated=allow_truncated)


def check_file(path: Path) -> None:
    """Raise InputError unless `path` is a file that can be opened and holds something."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a folder: choose an audio file in it")
        if not path.is_file():
            raise InputError(f"{path} is not a regular file: pipe its audio to stdin and pass - as the song")
        with path.open("rb") as file:
            head = file.read(4096)
    except (FileNotFoundError, ValueError):  # the latter for a name with a NUL
        raise InputError(f"{path} does not exist: check the name and the folder") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror or error}") from None
    if not size:
        raise InputError(f"{path} is empty (0 bytes): copy or download it again")
    if _is_text(head):  # before any decoder: a playlist could make ffmpeg open other files
        raise InputError(f"{path} is a text file, not audio: choose an audio file")


def _open_decoder(path: Path) -> Decoder:
    try:
        return _SoundfileDecoder(path)
    except soundfile.LibsndfileError:
        return FfmpegDecoder(path)


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Read as a stream: else soundfile seeks after each read, which fails where the length is unknown."""

    def seekable(self) -> bool:
        return False


class _SoundfileDecoder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._missing = 0  # bytes, as far as a header tells
        missing = missing_mp3_bytes(path)
        self._file = _SoundFile(soundfile_name(path))
        if missing is None and self._file.format == "MP3":
            # Without a length header libsndfile guesses the length from the first frames and stops there,
            # even in the middle of the song (measured: 4.9 s of 20 s). From a pipe it reads all.
            self._file.close()
            self._file = _SoundFile(_pipe(path))
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        self.frames = int(self._file.frames) if 0 < self._file.frames < _UNKNOWN_FRAMES else None
        size = _DATA_SIZE.search(self._file.extra_info)
        if missing:
            self._missing = missing
        elif size and int(size[2]) < int(size[1]) < _STREAMED_BYTES:
            self._missing = int(size[1]) - int(size[2])
        self._no_end = self._file.format == "OGG" and is_ogg_cut_short(path)

    def read(self, frames: int) -> Samples:
        try:
            samples: Samples = self._file.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            reason = str(error).removeprefix("Error : ").rstrip(".")
            raise TruncatedError(f"{self._path} is damaged ({reason}): {_ADVICE}") from None
        return samples

    def check_whole(self, decoded: int) -> None:
        how = ""
        if self._missing:
            how = f"{self._missing} bytes are missing"
        elif self._no_end:
            how = "its end is missing"
        elif self.frames is not None and decoded < self.frames - _CUT_TOLERANCE * self.sample_rate:
            announced, found = self.frames / self.sample_rate, decoded / self.sample_rate
            how = f"{found:.1f} s of the {announced:.1f} s in its header can be read"
        if how:
            raise TruncatedError(f"{self._path} is cut short ({how}): {_ADVICE}")

    def close(self) -> None:
        self._file.close()


def soundfile_name(path: Path) -> str | bytes:
    """A path as soundfile takes it: it encodes text itself, and fails at a name that is no UTF-8."""
    return str(path) if sys.platform == "win32" else os.fsencode(path)


def _is_text(head: bytes) -> bool:
    """Whether a file's first bytes are text; audio has NUL bytes or invalid UTF-8 in its first 4 kB."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"#EXTM3U", b"ffconcat")):
        return True
    try:
        head[: max(1, len(head) - 3)].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 6
    return b"\0" not in head


def _pipe(path: Path) -> int:
    """A pipe's reading end into which a thread copies the file; closing the end stops the thread."""
    reading, writing = os.pipe()

    def copy() -> None:
        try:
            with path.open("rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
                while data := source.read(1 << 16):
                    sink.write(data)
        except OSError:
            pass  # the reader has closed its end, or the disk failed: the decoder sees the data end

    threading.Thread(target=copy, name="tfswa-sep-mp3", daemon=True).start()
    return reading
