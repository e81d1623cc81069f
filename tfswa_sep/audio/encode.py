"""Write one stem file, block by block.

libsndfile writes WAV, FLAC and Ogg; ffmpeg writes M4A, and where it is installed also MP3 and Opus. It has the same
encoders for these as libsndfile, built with faster instructions: half the time for the same sound (measured). Only
32-bit float files can exceed full scale: all others clip, and clipped samples are counted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa_sep.audio import tags as tagging
from tfswa_sep.audio.decode import soundfile_name
from tfswa_sep.audio.ffmpeg import ffmpeg_encodes, find_ffmpeg, last_error
from tfswa_sep.audio.ffmpeg_process import FfmpegProcess
from tfswa_sep.audio.formats import AudioFormat
from tfswa_sep.audio.mp4 import check_mp4
from tfswa_sep.audio.resample import Samples, interleave
from tfswa_sep.audio.truncation import survey
from tfswa_sep.errors import OutputError, advice

_AUTO_DOWNGRADE = 0x1210  # libsndfile's SFC_RF64_AUTO_DOWNGRADE, which soundfile does not define
# Of four demo stems, three have 4 to 27 dB less noise than with ffmpeg's defaults, one has 2 dB more (measured).
AAC = ("-c:a", "aac", "-aac_coder", "fast", "-aac_is", "0")
_BY_FFMPEG = {
    "m4a": (*AAC, "-f", "ipod"),
    "mp3": ("-c:a", "libmp3lame", "-id3v2_version", "0", "-f", "mp3"),
    "opus": ("-c:a", "libopus", "-vbr", "constrained", "-f", "opus"),
}
_SUBTYPES = {"mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}


class Encoder:
    """Writes one file; counts its frames and clipped samples, and measures its peak.

    Args:
        path: An existing, empty file.
        target: Its name in error messages.
        rate: Hz.
        channels: Of the file.
        audio_format: Of the file.
        large: The file may exceed WAV's 4 GB.
        tags: Title, artist and so on, see tags.py.
        cover: An image file's content.

    Raises:
        OutputError: From every step.
    """

    def __init__(
        self,
        path: Path,
        target: Path,
        rate: int,
        channels: int,
        audio_format: AudioFormat,
        *,
        large: bool = False,
        tags: Mapping[str, str] | None = None,
        cover: bytes | None = None,
    ) -> None:
        self.path = path
        self.frames = 0
        self.clipped = 0
        self.peak = 0.0
        self._target = target
        self._format = audio_format
        self._rate = rate
        self._channels = channels
        self._cover = cover
        self._tags = dict(tags or {})
        try:
            if audio_format.container == "m4a" or ffmpeg_encodes(audio_format.container):
                self._sink: _Soundfile | _Ffmpeg = _Ffmpeg(path, rate, channels, audio_format, self._tags)
            else:
                self._sink = _Soundfile(path, rate, channels, audio_format, self._tags, large=large)
        except (OSError, soundfile.LibsndfileError) as error:
            raise cannot_write(target, error) from None

    def write(self, samples: Samples) -> None:
        """Append (c, n) samples."""
        if not samples.shape[1]:
            return
        self.frames += samples.shape[1]
        self.peak = max(self.peak, float(np.abs(samples).max()))
        try:
            self._sink.write(interleave(self._limit(samples)))
        except (OSError, soundfile.LibsndfileError) as error:
            raise cannot_write(self._target, error) from None

    def _limit(self, samples: Samples) -> Samples | NDArray[np.int32]:
        steps = self._format.steps
        if self._format.is_lossy:
            limited: Samples = np.clip(samples, -1, 1)
            self.clipped += int(np.count_nonzero(limited != samples))
            return limited
        if steps is None:
            return samples
        whole = np.rint(samples * np.float32(steps))  # exact: steps is a power of two
        within = np.clip(whole, -steps, steps - 1)
        self.clipped += int(np.count_nonzero(whole != within))
        integers: NDArray[np.int32] = within.astype(np.int32)
        return np.left_shift(
            integers, 32 - int(self._format.bit_depth)
        )  # libsndfile takes the upper bits of 32

    def close(self) -> None:
        """Finish the file, check that it is complete, and flush it to the disk."""
        if self._sink.closed:
            return
        try:
            if self._format.container == "m4a":  # stores its length in milliseconds: round up, not down
                self._sink.write(np.zeros((self._rate // 1000 + 1, self._channels), np.float32))
            self._sink.close()
            if self._tags and self._format.container == "wav":
                tagging.add_wav_tags(self.path, self._tags)
            if self._tags and self._format.container == "mp3":
                tagging.insert_id3(self.path, self._tags)
            if self._tags and self._format.container in ("flac", "ogg", "opus"):
                tagging.write_all(self.path, self._format.extension, self._tags)
            if self._cover:
                tagging.write_cover(self.path, self._format.extension, self._cover)
            self._check_whole()
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        except (OSError, soundfile.LibsndfileError) as error:
            raise cannot_write(self._target, error) from None

    def _check_whole(self) -> None:
        """Reopen the file and count its samples: an encoder can fail without reporting an error."""
        if isinstance(self._sink, _Ffmpeg):
            if self._format.container == "m4a":
                check_mp4(self.path, 1, self.frames, messages=self._sink.messages)
                return
            if (layout := survey(self.path)) and layout.fault:
                raise OSError(0, f"the file {layout.fault}")
        with soundfile.SoundFile(soundfile_name(self.path)) as written:
            if written.frames < self.frames:
                raise OSError(0, f"only {written.frames} of {self.frames} samples were written")

    def abandon(self) -> None:
        """Stop writing and leave the file as it is."""
        with suppress(OSError, soundfile.LibsndfileError):
            self._sink.abandon()


class _Soundfile:
    def __init__(
        self,
        path: Path,
        rate: int,
        channels: int,
        audio_format: AudioFormat,
        tags: Mapping[str, str],
        *,
        large: bool,
    ) -> None:
        steering: dict[str, str | float] = {}
        if audio_format.is_lossy:
            container, subtype = _SUBTYPES[audio_format.container]
            steering = {"compression_level": audio_format.compression_level(rate, channels)}
            if container == "MP3":
                steering = {"bitrate_mode": "CONSTANT", **steering}
        else:
            container = "FLAC" if audio_format.container == "flac" else "RF64" if large else "WAV"
            subtype = "FLOAT" if audio_format.bit_depth == "32f" else f"PCM_{audio_format.bit_depth}"
        self._sink = _Sink(path)
        self._file = soundfile.SoundFile(
            self._sink, "w", rate, channels, subtype=subtype, format=container, **steering
        )
        if container == "RF64":  # back to plain WAV if the song turns out to be short
            soundfile._snd.sf_command(self._file._file, _AUTO_DOWNGRADE, soundfile._ffi.NULL, True)
        if container != "MP3":
            for name, text in tagging.libsndfile_tags(tags).items():
                setattr(self._file, name, text)

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def write(self, samples: NDArray[np.float32] | NDArray[np.int32]) -> None:
        self._file.write(samples)
        self._sink.check()

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            self._sink.close()

    abandon = close


class _Sink:
    """A file for libsndfile, which does not report that its last writes failed: `check` does."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb+", buffering=0)
        self._error: OSError | None = None
        self.read, self.seek, self.tell = self._file.read, self._file.seek, self._file.tell

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:  # exceptions do not pass through C: `check` raises it
            self._error = error
        return len(data)

    def check(self) -> None:
        """Raise the error of an earlier write."""
        if self._error:
            raise self._error

    def close(self) -> None:
        self._file.close()
        self.check()


class _Ffmpeg:
    """A lossy file, from an ffmpeg process that reads samples from a pipe."""

    def __init__(
        self, path: Path, rate: int, channels: int, audio_format: AudioFormat, tags: Mapping[str, str]
    ) -> None:
        program = find_ffmpeg()
        assert program is not None  # find_format has checked
        command = [program, "-nostdin", "-hide_banner", "-loglevel", "level+error", "-y"]
        command += ["-f", "f32le", "-ar", str(rate), "-ac", str(channels), "-i", "pipe:0"]
        container, bitrate = audio_format.container, audio_format.bitrate
        if container == "m4a":
            bitrate = min(bitrate, 6 * rate * channels // 1000)  # AAC's limit: 6 bits per sample
        else:
            low, high = audio_format.bitrate_limits(rate, channels)
            bitrate = min(max(bitrate, low), high)
        if container == "m4a" or (container == "opus" and not tagging.has_mutagen()):
            command += tagging.ffmpeg_options(tags)
        command += [*_BY_FFMPEG[container], "-b:a", f"{bitrate}k", f"file:{path.resolve()}"]
        self.messages = ""  # of the process, after it has ended
        self._child = FfmpegProcess(command, stdin=True)
        self.closed = False

    def write(self, samples: NDArray[np.float32] | NDArray[np.int32]) -> None:
        try:
            self._child.write(np.ascontiguousarray(samples, "<f4").data)
        except BrokenPipeError:
            raise self._failure() from None

    def close(self) -> None:
        self.closed = True
        try:
            self._child.end_input()
        except BrokenPipeError:
            raise self._failure() from None
        if self._child.wait():
            raise self._failure()
        self.messages = self._child.messages()
        self._child.close()

    def abandon(self) -> None:
        self.closed = True
        self._child.close()

    def _failure(self) -> OSError:
        self._child.wait()
        return OSError(0, last_error(self._child.messages()))


def cannot_write(path: Path, error: Exception) -> OutputError:
    """The error to raise if `path` could not be written."""
    if isinstance(error, soundfile.LibsndfileError):  # gives no reason; usually the disk is full
        error = OSError(errno.ENOSPC, "the disk may be full")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return OutputError(f"cannot write {path} ({reason}): {advice(error)}")
