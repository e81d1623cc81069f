"""Decode files that soundfile cannot read, with an ffmpeg process.

ffmpeg writes 32-bit floats with Sun's AU header to its standard output: the header gives the rate and channels
actually delivered, so there is no need for ffprobe or for parsing messages.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio.containers import end_of_sound, find_demuxer, skip_tags
from tfswa_sep.audio.ffmpeg_process import FfmpegProcess
from tfswa_sep.audio.file_parts import FileBytes
from tfswa_sep.errors import InputError, TruncatedError, advice, ffmpeg_install_command

_CUT_SECONDS = 0.05  # seconds by which a container's duration may exceed its audio
_SILENT = 1e-4  # peak of a silent track
_LATE = 0.1  # seconds: a video's audio that starts later gets a note, and a longer gap is damage
_DRIFT = 0.035  # seconds; smaller jumps in the timestamps are clock drift
# Reports how far timestamps are ahead of the samples, at the first frame and wherever that changes.
_TIMELINE = (
    "asplit[decoded],asetpts=PTS-NB_CONSUMED_SAMPLES,"
    "aselect='if(isnan(prev_pts)+gt(abs(pts*TB-ld(0)),0.03),1+0*st(0,pts*TB),0)',ashowinfo,anullsink;[decoded]anull"
)
_OFFSET = re.compile(r"ashowinfo.*? pts_time:(-?[\d.]+)")
_TRACK = re.compile(r"(?m)^(?:\[info\] )?  Stream #0:\d+(?:\[\w+\])?(?:\((\w+)\))?: Audio: (.*)")
_ENCODERS = {"mp3": "libmp3lame", "opus": "libopus"}  # which not every ffmpeg has
# Warnings by which ffmpeg reports audio that it skips.
_DAMAGE = re.compile(
    r"partial file|corrupt (?:input packet|decoded frame)|Packet corrupt|Packet mismatch|ended prematurely"
)


class FfmpegDecoder:
    """A song decoded by an ffmpeg process, at its own rate; see decode.Decoder.

    Args:
        path: The song.
        channels: Mix the song to so many; None for its own.
        track: Audio track, counting from 1; None for the default one, or the first that is not silent.
        frames: Exact samples per channel; None if only the container's duration is known.
        between: The first byte to read and the one to stop at; None for the whole file.

    Raises:
        InputError: ffmpeg is not installed, or there is no audio or no such track.
    """

    def __init__(
        self,
        path: Path,
        *,
        channels: int | None = None,
        track: int | None = None,
        frames: int | None = None,
        between: tuple[int, int] | None = None,
    ) -> None:
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
            raise InputError(f"{path} cannot be read as audio (unknown file type): check the file")
        # A hostile file cannot make ffmpeg open an address or another file: see containers.py.
        self._input = [program, "-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info"]
        self._input += ["-protocol_whitelist", "file,pipe,subfile", "-f", demuxer]
        self._input += ["-err_detect", "crccheck"] if demuxer == "tta" else []  # other decoders do so unasked
        self._input += ["-i", _without_tags(path) if between is None else _name(path, *between)]
        self._path = path
        self._channels = channels
        self._exact_frames = frames
        self._start(track or 1)
        self.notes: tuple[str, ...] = ()
        try:
            if track is None and len(self._tracks) > 1:
                self._choose_track()
        except BaseException:
            self.close()
            raise
        self._silence = self._find_offset()
        if self._silence:
            offset = self._silence / self.sample_rate
            self.notes += (f"the audio of {path} starts {offset:.2f} s late: the stems begin with silence",)

    def _start(self, track: int) -> None:
        """Run ffmpeg, and read the header of its output."""
        self._decoded = 0
        command = [*self._input, "-map", f"0:a:{track - 1}", "-filter:a", _TIMELINE]
        command += ["-ac", str(self._channels)] if self._channels else []
        command += ["-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
        try:
            self._child = FfmpegProcess(command, stdout=True)
        except OSError as error:
            raise InputError(f"cannot run {command[0]} to read {self._path}: {error.strerror}") from None
        try:
            header = self._read(24)  # magic, header bytes, data bytes, encoding, rate, channels
        except BaseException:  # Ctrl-C: ffmpeg must not go on without us
            self.close()
            raise
        messages = self._child.messages()
        self._tracks = _TRACK.findall(messages.partition("Stream mapping:")[0].partition("Output #0")[0])
        if len(header) < 24 or header[:4] != b".snd":
            self._child.wait()
            messages = self._child.messages()
            self._tracks = _TRACK.findall(messages)
            self.close()
            if "matches no streams" not in messages:
                reason = last_error(messages)
                raise InputError(f"{self._path} cannot be read as audio ({reason}): check the file")
            if not self._tracks:
                raise InputError(f"{self._path} has no audio track: choose another file")
            raise InputError(f"{self._path} has no audio track {track}: it has {self._describe_tracks()}")
        self._read(int.from_bytes(header[4:8], "big") - 24)
        self.sample_rate = int.from_bytes(header[16:20], "big")
        self.channels = int.from_bytes(header[20:24], "big")
        streams = re.findall(r"(?m)^(?:\[info\] )?  Stream #0:(\d+)", messages.partition("Output #0")[0])
        self._is_video = len(set(streams)) > 1  # or has another track, which may be longer
        self.frames = self._exact_frames or self._announced_frames(messages)

    def _choose_track(self) -> None:
        order = sorted(range(len(self._tracks)), key=lambda index: "(default)" not in self._tracks[index][1])
        chosen = next((index for index in order if self._sounds(index)), order[0])
        silent = [str(index + 1) for index in order[: order.index(chosen)]]
        skipped = (
            f", as {' and '.join(silent)} {'is' if len(silent) == 1 else 'are'} silent" if silent else ""
        )
        if chosen:
            self.close()
            self._start(chosen + 1)
        self.notes = (
            f"{self._path} has {self._describe_tracks()}; using track {chosen + 1}{skipped}: "
            "choose another with --track",
        )

    def _sounds(self, index: int) -> bool:
        command = [*self._input, "-map", f"0:a:{index}", "-f", "f32le", "pipe:1"]
        with FfmpegProcess(command, stdout=True) as child:
            while data := child.read(1 << 18):
                samples = np.frombuffer(data[: len(data) // 4 * 4], np.float32)
                if len(samples) and np.abs(samples).max() > _SILENT:
                    return True
        return False

    def _describe_tracks(self) -> str:
        """The number of tracks, with their languages and codecs."""
        described = (
            f"{number} ({', '.join(filter(None, (language.replace('und', ''), codec.split(',')[0].split(' (')[0])))})"
            for number, (language, codec) in enumerate(self._tracks, 1)
        )
        return f"{len(self._tracks)} audio track{'s' * (len(self._tracks) > 1)}: {', '.join(described)}"

    def read(self, frames: int) -> NDArray[np.float32]:
        """Up to `frames` next samples as (n, c); n is 0 only at the end."""
        if self._silence:
            count = min(frames, self._silence)
            self._silence -= count
            return np.zeros((count, self.channels), np.float32)
        frame_bytes = 4 * self.channels
        data = self._read(frames * frame_bytes)
        whole = len(data) // frame_bytes * frame_bytes
        self._decoded += whole // frame_bytes
        if not whole:
            self._check_whole()
        return np.frombuffer(data[:whole], dtype=">f4").reshape(-1, self.channels).astype(np.float32)

    def skip_part(self) -> bool:
        """Always False: ffmpeg continues after damage by itself."""
        return False

    def _check_whole(self) -> None:
        """Raise TruncatedError if ffmpeg failed, reported damage, or skipped part of the song."""
        failed = self._child.wait() != 0
        messages = self._child.messages()
        # Ignore the AU muxer's complaints about timestamps, which AU does not store.
        decoding = re.sub(r"(?m)^\[au @ .*", "", messages.partition("Stream mapping:")[2])
        seconds = self._decoded / self.sample_rate
        tolerance = 0 if self._exact_frames else _CUT_SECONDS * self.sample_rate
        offsets = _offsets(decoding)
        jumps = (after - before for before, after in itertools.pairwise(offsets))
        gap = sum(jump for jump in jumps if abs(jump) > _DRIFT)
        if failed or _errors(decoding):
            how = f"is damaged ({last_error(decoding)}; {seconds:.2f} s can be read)"
        elif reported := _DAMAGE.search(decoding):
            how = f"is damaged ({reported[0].strip()}; {seconds:.2f} s can be read)"
        elif gap > (_LATE if self._is_video else _DRIFT):
            how = f"is damaged ({gap:.2f} s are missing between the {seconds:.2f} s that can be read)"
        elif self.frames is not None and self._decoded < self.frames - tolerance:
            how = (
                f"is cut short ({seconds:.2f} s of the {self.frames / self.sample_rate:.2f} s in its header)"
            )
        else:
            if gap > _DRIFT:
                self.notes += (f"{gap:.2f} s are missing in the audio of {self._path}",)
            return
        raise TruncatedError(
            f"{self._path} {how}: copy or download it again, or keep what can be read with --allow-truncated"
        )

    def close(self) -> None:
        """End the process and close its pipes."""
        self._child.close()

    def _announced_frames(self, messages: str) -> int | None:
        """Samples according to the container; None if it does not give a length for its only stream."""
        duration = re.search(r"(?m)^(?:\[info\] )?  Duration: (\d+):(\d+):(\d+\.\d+)", messages)
        if duration is None or self._is_video or "Estimating duration" in messages:
            return None
        seconds = int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3])
        return round(seconds * self.sample_rate) or None

    def _find_offset(self) -> int:
        """Samples from the beginning of the file to the first audio sample."""
        offsets = _offsets(self._child.messages())
        late = self._is_video and offsets and offsets[0] > _LATE
        return round(offsets[0] * self.sample_rate) if late else 0

    def _read(self, size: int) -> bytes:
        try:
            return self._child.read(size)
        except OSError as error:
            raise InputError(f"{self._path} cannot be read ({error.strerror}): {advice(error)}") from None


def find_ffmpeg() -> str | None:
    """The ffmpeg on the PATH, else the one from the imageio-ffmpeg package, else None."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def ffmpeg_encodes(container: str) -> bool:
    """Whether there is an ffmpeg that can write this kind of stem file, mp3 or opus."""
    program, encoder = find_ffmpeg(), _ENCODERS.get(container)
    return bool(program and encoder and encoder in _encoders(program))


@functools.cache
def _encoders(program: str) -> frozenset[str]:
    try:
        with FfmpegProcess([program, "-nostdin", "-hide_banner", "-encoders"], stdout=True) as child:
            return frozenset(child.read().decode("utf-8", errors="replace").split())
    except OSError:  # it does not run, or hangs
        return frozenset()


def last_error(messages: str) -> str:
    """The reason in the last error of an ffmpeg that ran with `-loglevel level+...`."""
    errors = _errors(messages)
    return errors[-1].split(": ")[-1].strip() if errors else "ffmpeg gave no reason"


def _without_tags(path: Path) -> str:
    """The file as ffmpeg opens it, without the tags at both ends, which some demuxers take for damage."""
    with FileBytes(path) as data:
        size, end = len(data), end_of_sound(data)
        start = skip_tags(data, 0)
    return _name(path, start, end) if (start, end) != (0, size) else f"file:{path.resolve()}"


def _name(path: Path, start: int, end: int) -> str:
    """The name by which ffmpeg opens some of a file's bytes."""
    return f"subfile,,start,{start},end,{end},,:file:{path.resolve()}"


def _offsets(messages: str) -> list[float]:
    return [float(offset) for offset in _OFFSET.findall(messages)]


def _errors(messages: str) -> list[str]:
    return [
        line.split("] ", line.count("] "))[-1]
        for line in messages.splitlines()
        if "[error]" in line or "[fatal]" in line
    ]
