"""Decode what soundfile cannot read with an ffmpeg process.

ffmpeg writes 32-bit floats with Sun's AU header to its standard output: the header says rate and channels as
they are delivered, so neither ffprobe nor a parse of ffmpeg's messages is needed.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio.containers import find_demuxer
from tfswa_sep.errors import InputError, TruncatedError
from tfswa_sep.installation import ffmpeg_install_command

_CUT_SECONDS = 1.0  # a container's duration may be this much longer than its sound


class FfmpegDecoder:
    """A song decoded by an ffmpeg process, at its own rate; see decode.Decoder.

    channels: how many to mix the song to, None for its own.
    Raises InputError if there is no ffmpeg, or ffmpeg finds no sound.
    """

    def __init__(self, path: Path, *, channels: int | None = None) -> None:
        program = find_ffmpeg()
        if program is None:
            reason = (
                "has more than two channels; mixing it down"
                if channels
                else ("is not wav, flac, ogg, opus, mp3 or aiff; reading it")
            )
            raise InputError(f"{path} {reason} needs ffmpeg: {ffmpeg_install_command()}")
        demuxer = find_demuxer(path)
        if demuxer is None:
            raise InputError(f"{path} cannot be read as audio (unknown kind of file): check the file")
        self._path = path
        self._decoded = 0
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  # a file, no pipe: it cannot fill up and block ffmpeg
        # A hostile file cannot make ffmpeg open an address or another file: see containers.py.
        command = [program, "-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info"]
        command += ["-protocol_whitelist", "file,pipe", "-f", demuxer, "-i", f"file:{path.resolve()}"]
        command += ["-map", "0:a:0", *(["-ac", str(channels)] if channels else [])]
        command += ["-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._messages
            )
        except OSError as error:
            self._messages.close()
            raise InputError(f"cannot run {program} to read {path}: {error.strerror}") from None
        assert self._process.stdout is not None
        self._output = self._process.stdout
        header = self._output.read(24)  # magic, header bytes, data bytes, encoding, rate, channels
        if len(header) < 24 or header[:4] != b".snd":
            self._process.wait()
            messages = self._read_messages()
            self.close()
            if "matches no streams" in messages:
                raise InputError(f"{path} has no audio track: choose another file")
            raise InputError(f"{path} cannot be read as audio ({last_error(messages)}): check the file")
        self._output.read(int.from_bytes(header[4:8], "big") - 24)
        self.sample_rate = int.from_bytes(header[16:20], "big")
        self.channels = int.from_bytes(header[20:24], "big")
        self.frames = self._announced_frames()

    def read(self, frames: int) -> NDArray[np.float32]:
        """Up to `frames` next samples as (n, c); n is 0 only at the end."""
        frame_bytes = 4 * self.channels
        data = self._output.read(frames * frame_bytes)
        whole = len(data) // frame_bytes * frame_bytes
        self._decoded += whole // frame_bytes
        if not whole:
            self._check_whole()
        return np.frombuffer(data[:whole], dtype=">f4").reshape(-1, self.channels).astype(np.float32)

    def skip_part(self) -> bool:
        """False: ffmpeg goes on behind damage by itself."""
        return False

    def _check_whole(self) -> None:
        """Raise TruncatedError if ffmpeg failed, or reported errors and gave less than the file announces."""
        failed = self._process.wait() != 0
        messages = self._read_messages()
        cut = self.frames is not None and self._decoded < self.frames - _CUT_SECONDS * self.sample_rate
        if failed or (cut and _errors(messages)):
            raise TruncatedError(
                f"{self._path} is cut short or damaged after {self._decoded / self.sample_rate:.1f} s "
                f"({last_error(messages)}): "
                "copy or download it again, or keep what can be read with --allow-truncated"
            )

    def close(self) -> None:
        """End the process and close its pipes."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._output.close()
        self._messages.close()

    def _announced_frames(self) -> int | None:
        duration = re.search(r"(?m)^(?:\[info\] )?  Duration: (\d+):(\d+):(\d+\.\d+)", self._read_messages())
        if duration is None:
            return None
        seconds = int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3])
        return round(seconds * self.sample_rate) or None

    def _read_messages(self) -> str:
        self._messages.seek(0)
        return self._messages.read().decode("utf-8", errors="replace")


def find_ffmpeg() -> str | None:
    """The ffmpeg on the PATH, else the one that the imageio-ffmpeg package brings, else None."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def last_error(messages: str | bytes) -> str:
    """The reason in the last error of an ffmpeg that ran with `-loglevel level+...`."""
    errors = _errors(messages if isinstance(messages, str) else messages.decode("utf-8", errors="replace"))
    return errors[-1].split(": ")[-1].strip() if errors else "ffmpeg gave no reason"


def _errors(messages: str) -> list[str]:
    return [
        line.split("] ", line.count("] "))[-1]
        for line in messages.splitlines()
        if "[error]" in line or "[fatal]" in line
    ]
