"""Read songs: decode in blocks, check every sample, resample as a stream.

soundfile reads wav, flac, ogg, opus and mp3; ffmpeg (see ffmpeg.py) reads m4a, video and the rest. A song
that is shorter than its header says is refused, never silently cut.
Axis letters: c channel, n samples; sample arrays are float32 at full scale +-1.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tfswa_sep.errors import InputError
from tfswa_sep.ffmpeg import FfmpegDecoder
from tfswa_sep.mp3 import read_length_header

Samples = NDArray[np.float32]

BLOCK = 65536  # samples decoded at once: 1.5 s at 44.1 kHz
LOUDEST = 1e6  # +120 dB above full scale: no recording is, and its squares still fit a float
RATES = (1_000, 768_000)  # samples a second that a song can have
_CUT_TOLERANCE = 0.1  # seconds that may be missing: encoders' delay and padding are counted differently
_UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2^63 - 1 for a stream of unknown length
_STREAMED_BYTES = (
    0x7FFF_0000  # a WAV's data size from here on, or 0, stands for "written as a stream, unknown"
)


class Decoder(Protocol):
    """A file being decoded at its own rate."""

    sample_rate: int
    channels: int
    frames: int | None  # announced, None where the file does not say

    def read(self, frames: int) -> Samples:
        """Up to `frames` next samples as (n, c); n is 0 only at the end. Raises InputError."""
        ...

    def check_whole(self, decoded: int) -> None:
        """Raise InputError if `decoded` samples are not the whole song."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class AudioReader:
    """An open song; use `open_audio`. A context manager; `blocks` can be walked once."""

    def __init__(self, path: Path, decoder: Decoder) -> None:
        self.path = path
        self.sample_rate = decoder.sample_rate  # Hz
        self.channels = decoder.channels  # 1 or 2
        self.frames = decoder.frames  # announced samples a channel, None if the file does not say
        self.decoded = 0  # samples a channel decoded so far, at the song's own rate
        self.peak = 0.0  # loudest sample so far
        self._decoder = decoder

    def blocks(
        self, rate: int | None = None, channels: int | None = None, block: int = BLOCK
    ) -> Iterator[Samples]:
        """Yield the song as (channels, n) blocks at `rate` Hz; both default to the song's own.

        A mono song asked for as stereo comes as two equal channels; stereo asked for as mono is averaged.
        Raises InputError for damaged, truncated and empty songs, and for samples that are no numbers.
        """
        return resample(
            self._decode(channels or self.channels, block), self.sample_rate, rate or self.sample_rate
        )

    def _decode(self, channels: int, block: int) -> Iterator[Samples]:
        while len(samples := self._decoder.read(block)):
            self._check(samples)
            self.decoded += len(samples)
            if channels != self.channels:
                samples = (
                    np.repeat(samples, channels, 1) if self.channels == 1 else samples.mean(1, keepdims=True)
                )
            yield np.ascontiguousarray(samples.T)
        if not self.decoded:
            raise InputError(f"{self.path} holds no sound: it has 0 samples; choose another file")
        self._decoder.check_whole(self.decoded)

    def _check(self, samples: Samples) -> None:
        peak = float(np.abs(samples).max())
        self.peak = max(self.peak, peak)
        if peak <= LOUDEST:  # False for NaN too
            return
        frame, channel = np.argwhere(~(np.abs(samples) <= LOUDEST))[0]
        raise InputError(
            f"{self.path}: sample {self.decoded + frame} of channel {channel + 1} "
            f"({(self.decoded + frame) / self.sample_rate:.3f} s) is {samples[frame, channel]:g}, "
            "which is no sound: export the song again"
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


def open_audio(path: str | Path) -> AudioReader:
    """Open a song of one or two channels; close it after use (`with open_audio(path) as song`).

    Raises InputError, in one line that names the file, if it is missing, a folder, empty, not audio, cut
    short (as far as its header tells), of more than two channels, or needs ffmpeg where there is none.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path} is a folder: name a song in it")
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the name and the folder") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror or error}") from None
    if not size:
        raise InputError(f"{path} is empty (0 bytes): copy or download it again")
    if _is_text(head):  # before any decoder: a playlist could make ffmpeg open other files
        raise InputError(f"{path} is a text file, whatever its name says: name a song")
    decoder = _open_decoder(path)
    complaint = ""
    if decoder.channels > 2:
        complaint = (
            f"has {decoder.channels} channels, only mono and stereo can be separated: "
            'mix it down first, for example "ffmpeg -i SONG -ac 2 STEREO.wav"'
        )
    elif not RATES[0] <= decoder.sample_rate <= RATES[1]:
        complaint = f"has {decoder.sample_rate} samples a second, which no song has: export it again"
    if complaint:
        decoder.close()
        raise InputError(f"{path} {complaint}")
    return AudioReader(path, decoder)


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
        missing = read_length_header(path)
        if missing is not None and missing > 0:
            raise _cut_short(path, f"{missing} bytes are missing")
        self._file = _SoundFile(str(path))
        if missing is None and self._file.format == "MP3":
            # Without a length header libsndfile guesses the length from the first frames and stops there,
            # even in the middle of the song (measured: 4.9 s of 20 s). From a pipe it reads all.
            self._file.close()
            self._file = _SoundFile(_pipe(path))
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        self.frames = int(self._file.frames) if 0 < self._file.frames < _UNKNOWN_FRAMES else None
        size = re.search(r"^data : (\d+) \(should be (\d+)\)", self._file.extra_info, re.MULTILINE)
        if size and int(size[2]) < int(size[1]) < _STREAMED_BYTES:
            self.close()
            raise _cut_short(path, f"{int(size[1]) - int(size[2])} bytes are missing")

    def read(self, frames: int) -> Samples:
        try:
            samples: Samples = self._file.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            reason = str(error).removeprefix("Error : ").rstrip(".")
            raise InputError(f"{self._path} is damaged ({reason}): copy or download it again") from None
        return samples

    def check_whole(self, decoded: int) -> None:
        if self.frames is not None and decoded < self.frames - _CUT_TOLERANCE * self.sample_rate:
            announced, found = self.frames / self.sample_rate, decoded / self.sample_rate
            raise _cut_short(self._path, f"its header announces {announced:.1f} s, {found:.1f} s are there")

    def close(self) -> None:
        self._file.close()


def _cut_short(path: Path, how: str) -> InputError:
    return InputError(
        f"{path} is cut short ({how}): copy or download it again, "
        'or keep what is there with "ffmpeg -i SONG WHOLE.wav"'
    )


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


def interleave(samples: NDArray[Any]) -> NDArray[Any]:
    """(c, n) to (n, c) in memory, as libsndfile and soxr want it; ten times faster than copying samples.T."""
    return np.stack(list(samples), axis=1)


class Resampler:
    """soxr at its HQ quality as a stream of (c, n) blocks; hands blocks through where the rates are equal."""

    def __init__(self, rate_in: int, rate_out: int, channels: int) -> None:
        self._channels = channels
        self._stream = None
        if rate_in != rate_out:
            self._stream = soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32", quality="HQ")

    def push(self, block: Samples) -> Samples:
        """The samples that `block` completes: (c, n) to (c, m)."""
        if self._stream is None:
            return block
        return np.ascontiguousarray(self._stream.resample_chunk(interleave(block)).T)

    def flush(self, silence: int = 0) -> Samples:
        """The rest, after `silence` zeros more of input."""
        if self._stream is None:
            return np.zeros((self._channels, 0), np.float32)
        silent = np.zeros((silence, self._channels), np.float32)
        return np.ascontiguousarray(self._stream.resample_chunk(silent, last=True).T)


def resample(blocks: Iterable[Samples], rate_in: int, rate_out: int) -> Iterator[Samples]:
    """Resample a stream of (c, n) blocks; n may be 0 in what is yielded."""
    resampler: Resampler | None = None
    for block in blocks:
        resampler = resampler or Resampler(rate_in, rate_out, len(block))
        yield resampler.push(block)
    if resampler:
        yield resampler.flush()
