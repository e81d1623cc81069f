"""Read songs: decode in blocks, check every sample, resample as a stream.

soundfile reads wav, flac, ogg, opus, mp3 and aiff; ffmpeg (see ffmpeg.py) reads m4a, video and the rest.
truncation.py finds how much audio there is and what is missing. A song with missing audio is refused unless that is
allowed, and never shortened silently.
Axis letters: c channel, n samples; sample arrays are float32 at full scale +-1.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import soundfile

from tfswa_sep.audio.ffmpeg import FfmpegDecoder
from tfswa_sep.audio.file_parts import Layout, Part, View
from tfswa_sep.audio.resample import Resampler, Samples, convert, extend, resample
from tfswa_sep.audio.truncation import rest_of_flac, survey
from tfswa_sep.constants import BLOCK_SAMPLES
from tfswa_sep.errors import InputError, TruncatedError, advice

_SALVAGE_BLOCK = 1024  # for songs that may be truncated: a decoder that fails loses the current block
MAX_PEAK = 1e6  # +120 dB above full scale: louder than any recording, and its square still fits a float
SAMPLE_RATES = (1_000, 768_000)  # supported sample rates, Hz
_UNKNOWN_FRAMES = 1 << 62  # libsndfile reports 2^63 - 1 for a stream of unknown length
_MPEG_SLACK = 2 * 1152  # samples that MPEG audio decoders skip at the start
_ADVICE = "copy or download it again, or keep what can be read with --allow-truncated"


class Decoder(Protocol):
    """A file being decoded at its own rate."""

    sample_rate: int
    channels: int
    frames: int | None  # as stated in the header; None if it states no length
    notes: tuple[str, ...]  # what its owner should know, one line each

    def read(self, frames: int) -> Samples:
        """Up to `frames` next samples as (n, c); n is 0 only at the end.

        Raises InputError; TruncatedError if sound is missing, at the latest at the end.
        """
        ...

    def skip_part(self) -> bool:
        """After a TruncatedError, continue after the damage; return False if nothing can be read there."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class AudioReader:
    """An open song, from `open_audio`. A context manager; `blocks` can be iterated over once."""

    def __init__(
        self,
        path: Path,
        decoder: Decoder,
        *,
        size: int,
        allow_truncated: bool = False,
        missing: str = "",
    ) -> None:
        self.path = path
        self.sample_rate = decoder.sample_rate  # Hz
        self.channels = decoder.channels  # 1 or 2
        self.frames = decoder.frames  # samples per channel stated in the header, None if unknown
        self.decoded = 0  # samples per channel decoded so far, at the song's own rate
        self.peak = 0.0  # loudest sample so far
        self.missing = missing  # how it is truncated or damaged, if that is allowed
        self._decoder = decoder
        self._size = size  # bytes of the file when it was opened
        self._allow_truncated = allow_truncated

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, one line each, such as which of several audio tracks was chosen."""
        return self._decoder.notes

    def blocks(
        self,
        rate: int | None = None,
        channels: int | None = None,
        block: int = BLOCK_SAMPLES,
        *,
        margin: int = 0,
    ) -> Iterator[Samples]:
        """Yield the song as (channels, n) blocks.

        Args:
            rate: Hz; None for the song's own.
            channels: Mono becomes two equal channels, stereo is averaged to mono; None for the song's own.
            block: Samples decoded at once.
            margin: How far to continue the song at both ends, in samples at its own rate; see resample.py.

        Raises:
            InputError: The song is damaged, truncated or empty, or has NaN or infinite samples.
        """
        blocks = self._decode(channels or self.channels, block)
        rate = rate or self.sample_rate
        if margin:
            return convert(extend(blocks, margin), self.sample_rate, rate)
        return resample(blocks, self.sample_rate, rate)

    def _decode(self, channels: int, block: int) -> Iterator[Samples]:
        while len(samples := self._read(block)):
            self._check(samples)
            self.decoded += len(samples)
            if channels != self.channels:
                samples = (
                    np.repeat(samples, channels, 1) if self.channels == 1 else samples.mean(1, keepdims=True)
                )
            yield np.ascontiguousarray(samples.T)
        self._check_size()
        if not self.decoded:
            raise InputError(f"{self.path} contains no audio (0 samples): choose another file")

    def _read(self, block: int) -> Samples:
        while True:
            try:
                return self._decoder.read(min(block, _SALVAGE_BLOCK) if self._allow_truncated else block)
            except TruncatedError as error:
                if not self._allow_truncated:
                    raise
                found = str(error).removeprefix(f"{self.path} ").partition(": ")[0]
                self.missing = self.missing or found
                if not self._decoder.skip_part():
                    return np.zeros((0, self.channels), np.float32)

    def _check_size(self) -> None:
        """Decoders do not notice that a file was cut, or is still being written, while they read it."""
        try:
            size = self.path.stat().st_size
        except OSError:  # deleted or renamed: the open file stays whole
            return
        if size != self._size:
            found = f"changed while it was being read, from {self._size} bytes to {size}"
            if not self._allow_truncated:
                raise TruncatedError(f"{self.path} {found}: wait until it is complete, and try again")
            self.missing = self.missing or found

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
        """Close the file and end the decoder's process."""
        self._decoder.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_audio(
    path: str | Path, *, downmix: bool = False, allow_truncated: bool = False, track: int | None = None
) -> AudioReader:
    """Open a song of one or two channels; close it after use (`with open_audio(path) as song`).

    Args:
        path: The song.
        downmix: Let ffmpeg mix more channels down to two, according to their layout.
        allow_truncated: Read what remains of a truncated or damaged song, and describe the damage in the reader's
            `missing`.
        track: Audio track, counting from 1; None for the default one, or the first that is not silent.

    Raises:
        InputError: The file is missing, a folder, empty, not audio, truncated or damaged (as far as this can be
            detected), has more than two channels, or needs ffmpeg, which is not installed.
    """
    path = Path(path)
    size = check_file(path)
    try:
        return _open(path, size, survey(path), downmix=downmix, allow_truncated=allow_truncated, track=track)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): {advice(error)}") from None


def _open(
    path: Path,
    size: int,
    layout: Layout | None,
    *,
    downmix: bool,
    allow_truncated: bool,
    track: int | None,
) -> AudioReader:
    fault = layout.fault if layout else ""
    if fault and not allow_truncated:
        raise TruncatedError(f"{path} {fault}: {_ADVICE}")
    decoder = _open_decoder(path, layout, track)
    try:
        if decoder.channels > 2:
            if not downmix:
                raise InputError(
                    f"{path} has {decoder.channels} channels, but only mono and stereo can be separated: "
                    "use --downmix to mix it down to stereo"
                )
            if layout and len(layout.parts) > 1:
                raise InputError(f"{path} is several surround-sound files joined into one: split it")
            decoder.close()
            decoder = FfmpegDecoder(path, channels=2, track=track)
        if not SAMPLE_RATES[0] <= decoder.sample_rate <= SAMPLE_RATES[1]:
            raise InputError(
                f"{path} has an unsupported sample rate of {decoder.sample_rate} Hz: export it again"
            )
    except InputError:
        decoder.close()
        raise
    return AudioReader(path, decoder, size=size, allow_truncated=allow_truncated, missing=fault)


def check_file(path: Path) -> int:
    """Return the size of a file in bytes. Raises InputError unless it is a non-empty file that can be opened."""
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
    if _is_text(head):  # checked before any decoder runs: a playlist could make ffmpeg open other files
        raise InputError(f"{path} is a text file, not audio: choose an audio file")
    return size


def _open_decoder(path: Path, layout: Layout | None, track: int | None) -> Decoder:
    layout = layout or Layout(parts=(Part(ranges=()),), by_name=True)
    if layout.readable:
        with suppress(soundfile.LibsndfileError):
            decoder = _SoundfileDecoder(path, layout)
            if track not in (None, 1):
                decoder.close()
                raise InputError(f"{path} has no audio track {track}: it has one")
            return decoder
    if len(layout.parts) > 1:
        if all(len(part.ranges) == 1 and not part.patches for part in layout.parts):
            return _JoinedDecoder(path, [part.ranges[0] for part in layout.parts], track)
        raise InputError(
            f"{path} is {len(layout.parts)} files joined into one, and in this format only the first can be "
            "read: split it"
        )
    return FfmpegDecoder(path, track=track, frames=layout.parts[0].frames)


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A non-seekable soundfile.SoundFile: otherwise it seeks after each read, which fails if the length is
    unknown.
    """

    def seekable(self) -> bool:
        return False


class _SoundfileDecoder:
    """Decodes the parts of a file, at their highest sample rate and largest channel count."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.notes: tuple[str, ...] = ()
        self._path = path
        self._parts = layout.parts
        self._by_name = layout.by_name
        self._index = 0
        self._converter: Resampler | None = None
        self._decoded = 0  # samples of the current part
        self._view: View | None = None
        self._file = self._open()
        kinds = [self._kind()]
        for index in range(1, len(self._parts)):
            self._next(index)
            kinds.append(self._kind())
        if len(kinds) > 1:
            self._next(0)
        self.sample_rate = max(rate for rate, _, _ in kinds)
        self.channels = max(channels for _, channels, _ in kinds)
        claims = [claim and round(claim * self.sample_rate / rate) for rate, _, claim in kinds]
        self.frames = None if None in claims else sum(claim or 0 for claim in claims) or None

    def _open(self) -> _SoundFile:
        part = self._parts[self._index]
        self._view = None
        if self._by_name and not part.as_stream:
            file = _SoundFile(soundfile_name(self._path))
        else:
            self._view = View(self._path, part)
            file = _SoundFile(_pipe(self._view) if part.as_stream else self._view)
        self._decoded = 0
        return file

    def _kind(self) -> tuple[int, int, int | None]:
        """Rate, channels and samples of the current part."""
        return int(self._file.samplerate), int(self._file.channels), self._claimed()

    def _claimed(self) -> int | None:
        """Samples of the current part according to the header."""
        return int(self._file.frames) if 0 < self._file.frames < _UNKNOWN_FRAMES else None

    def read(self, frames: int) -> Samples:
        while not len(samples := self._read_part(frames)):
            flushed = self._converter.flush() if self._converter else None
            self._converter = None
            self._check_part()
            if flushed is not None and flushed.shape[1]:
                return flushed.T
            if self._index + 1 >= len(self._parts):
                break
            self._continue()
        return samples

    def skip_part(self) -> bool:
        """Continue behind damage, or with the next part; False if there is nothing more."""
        part = self._parts[self._index]
        if self._file.format == "FLAC" and (rest := rest_of_flac(self._path, part, self._decoded)):
            self._parts = (*self._parts[: self._index + 1], rest, *self._parts[self._index + 1 :])
            self._by_name = False
        if self._index + 1 >= len(self._parts):
            return False
        self._converter = None
        self._continue()
        return True

    def _continue(self) -> None:
        """Open the next part, which has been opened once before."""
        try:
            self._next(self._index + 1)
        except soundfile.LibsndfileError:
            error = self._view.error if self._view else None
            reason = (
                error and error.strerror
            ) or f"part {self._index + 1} of {len(self._parts)} is unreadable"
            raise TruncatedError(f"{self._path} is damaged ({reason}): {_ADVICE}") from None

    def _next(self, index: int) -> None:
        self._index = index
        self._file.close()
        self._file = self._open()

    def _read_part(self, frames: int) -> Samples:
        rate, channels = int(self._file.samplerate), int(self._file.channels)
        while True:
            try:
                samples: Samples = self._file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                reason = str(error).removeprefix("Error : ").rstrip(".")
                raise TruncatedError(f"{self._path} is damaged ({reason}): {_ADVICE}") from None
            self._decoded += len(samples)
            if channels < self.channels:
                samples = np.repeat(samples[:, :1], self.channels, axis=1)
            if rate == self.sample_rate or not len(samples):
                return samples
            self._converter = self._converter or Resampler(rate, self.sample_rate, self.channels)
            if len(converted := self._converter.push(samples.T).T):
                return converted

    def _check_part(self) -> None:
        part = self._parts[self._index]
        rate = int(self._file.samplerate)
        if self._view and self._view.error:
            reason = self._view.error.strerror or self._view.error
            raise TruncatedError(
                f"{self._path} is damaged ({reason}, after {self._decoded / rate:.3f} s): {_ADVICE}"
            )
        expected = max(self._claimed() or 0, part.frames or 0)
        slack = max(part.slack, _MPEG_SLACK) if self._file.subtype.startswith("MPEG") else part.slack
        if self._decoded < expected - slack:
            found = f"{self._decoded / rate:.3f} s of {expected / rate:.3f} s can be read"
            where = f" in part {self._index + 1} of {len(self._parts)}" if len(self._parts) > 1 else ""
            raise TruncatedError(f"{self._path} is cut short or damaged ({found}{where}): {_ADVICE}")

    def close(self) -> None:
        self._file.close()


class _JoinedDecoder:
    """Decodes files that were joined into one, each with ffmpeg; they must have the same rate and channels."""

    def __init__(self, path: Path, ranges: Sequence[tuple[int, int]], track: int | None) -> None:
        self.frames: int | None = None
        self._path = path
        self._ranges = ranges
        self._track = track
        self._index = 0
        self._decoder = FfmpegDecoder(path, track=track, between=ranges[0])
        self.sample_rate, self.channels = self._decoder.sample_rate, self._decoder.channels
        self.notes = self._decoder.notes

    def read(self, frames: int) -> Samples:
        while not len(samples := self._decoder.read(frames)) and self.skip_part():
            pass
        return samples

    def skip_part(self) -> bool:
        """Continue with the next file; False if there is none."""
        if self._index + 1 == len(self._ranges):
            return False
        self._index += 1
        self._decoder.close()
        self._decoder = FfmpegDecoder(self._path, track=self._track, between=self._ranges[self._index])
        if (self._decoder.sample_rate, self._decoder.channels) != (self.sample_rate, self.channels):
            raise InputError(
                f"{self._path} is {len(self._ranges)} files joined into one, and number {self._index + 1} has "
                "another sample rate or other channels than the first: split it"
            )
        return True

    def close(self) -> None:
        self._decoder.close()


def soundfile_name(path: Path) -> str | bytes:
    """A path in the form soundfile needs: given text, it fails for names that are not valid UTF-8."""
    return str(path) if sys.platform == "win32" else os.fsencode(path)


def _is_text(head: bytes) -> bool:
    """Whether a file's first bytes are text; audio has NUL bytes or invalid UTF-8 in its first 4 kB."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"#EXTM3U", b"ffconcat")):
        return True
    try:
        head[: max(1, len(head) - 3)].decode("utf-8")  # the last character may be incomplete
    except UnicodeDecodeError as error:
        if error.start < len(head) - 6:
            return False
    return b"\0" not in head


def _pipe(source: View) -> int:
    """The reading end of a pipe into which a thread copies the part; closing it stops the thread."""
    reading, writing = os.pipe()

    def copy() -> None:
        try:
            with source, os.fdopen(writing, "wb", buffering=0) as sink:
                while data := source.read(1 << 16):
                    sink.write(data)
        except OSError:
            pass  # the reader has closed its end, or the disk failed: the decoder sees the data end

    threading.Thread(target=copy, name="tfswa-sep-mp3", daemon=True).start()
    return reading
