"""Write the stems of one song to disk: all of them whole, or none.

Every stem goes to a hidden temporary file in its target's folder and is renamed when the whole song is done.
After an error or an interruption no temporary file stays, nor an empty folder that was made for it.

32-bit float files cannot clip. Integer files clip at full scale, and every clipped sample is counted; with
`rescale` the stems are kept as floats first; if any is above full scale, one common gain lowers all of them.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa_sep.audio import BLOCK, Resampler, Samples, interleave
from tfswa_sep.errors import OutputError, UsageError

WAV_BYTES = 4 * 10**9  # a WAV's 32-bit sizes end at 4.29 GB: RF64 from here on
_RESAMPLER_TAIL = 64  # zeros that push the last samples out of a resampler, at the model's rate
_FLAC_FREE_RATE = 65_535  # Hz; above it FLAC holds only multiples of ten
_FLAC_TOP_RATE = 655_350  # Hz


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """How stems are encoded."""

    container: str  # "wav" or "flac"; also the file name's extension
    bit_depth: str  # "32f", "24" or "16"

    @property
    def extension(self) -> str:
        """With its dot."""
        return f".{self.container}"

    @property
    def subtype(self) -> str:
        """libsndfile's name of the encoding."""
        return "FLOAT" if self.bit_depth == "32f" else f"PCM_{self.bit_depth}"

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample before compression."""
        return int(self.bit_depth.removesuffix("f")) // 8

    @property
    def steps(self) -> int | None:
        """Integer steps from zero to full scale; None for floats."""
        return None if self.bit_depth == "32f" else 1 << (int(self.bit_depth) - 1)

    @property
    def highest(self) -> float:
        """The loudest positive sample that is not clipped."""
        return 1.0 if self.steps is None else 1 - 1 / self.steps

    def nearest_rate(self, rate: int) -> int:
        """`rate` in Hz if the container can hold it, else the nearest that it can."""
        if self.container == "flac" and rate > _FLAC_FREE_RATE:
            return min(round(rate / 10) * 10, _FLAC_TOP_RATE)
        return rate


def find_format(container: str, bit_depth: str | None = None) -> AudioFormat:
    """The format of these options; bit_depth None means 32f for wav, 24 for flac. Raises UsageError."""
    choices = {"wav": ("32f", "24", "16"), "flac": ("24", "16")}
    if container not in choices:
        raise UsageError(f"unknown format '{container}': choose {' or '.join(choices)}")
    depth = choices[container][0] if bit_depth is None else bit_depth
    if depth not in choices[container]:
        raise UsageError(
            f"{container} files cannot have bit depth '{depth}': choose {', '.join(choices[container])}"
        )
    return AudioFormat(container=container, bit_depth=depth)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What StemWriter.commit did."""

    files: dict[str, Path]  # stem -> file
    clipped: dict[str, int]  # stem -> samples cut off at full scale, all channels together
    gain: float  # the common gain that rescale applied, 1.0 for none


class StemWriter:
    """Writes stems that come as (s, c, n) blocks at the model's rate; a context manager.

    paths: stem -> target, in the blocks' order.  rate, model_rate: Hz.
    frames: samples a channel that will come, at `rate`, or None where unknown: chooses RF64 for large files
    and checks the disk's free space in advance.
    Entering makes the folders and opens the temporary files. Leaving without `commit` removes both.
    Raises OutputError, one line that names file or folder, from every step.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        *,
        audio_format: AudioFormat,
        rate: int,
        model_rate: int,
        channels: int,
        frames: int | None = None,
        rescale: bool = False,
        overwrite: bool = True,
    ) -> None:
        self._paths = dict(paths)
        self._format = audio_format
        self._rate = rate
        self._channels = channels
        self._rescale = rescale
        self._overwrite = overwrite
        self._frames = frames
        self._resamplers = {stem: Resampler(model_rate, rate, channels) for stem in paths}
        self._made_folders: list[Path] = []
        self._encoders: dict[str, _Encoder] = {}
        self._temporaries: list[Path] = []

    def __enter__(self) -> StemWriter:
        first_format = find_format("wav", "32f") if self._rescale else self._format
        try:
            for stem, path in self._paths.items():
                self._check_target(path)
                self._make_folder(path.parent)
                self._encoders[stem] = self._open(path, first_format)
            self._check_space()
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):  # from looking at a path: too long a name, no permission
                raise _cannot_write(path, error) from None
            raise
        return self

    def write(self, block: Samples) -> None:
        """Append (s, c, n) samples, s in the order of `paths`."""
        for stem, samples in zip(self._paths, block, strict=True):
            self._encoders[stem].write(self._resamplers[stem].push(samples))

    def commit(self, frames: int) -> Written:
        """End each file at exactly `frames` samples a channel, at `rate`, and put all of them in place."""
        for stem, encoder in self._encoders.items():
            encoder.write(self._resamplers[stem].flush(_RESAMPLER_TAIL)[:, : frames - encoder.frames])
            encoder.write(np.zeros((self._channels, frames - encoder.frames), np.float32))
            encoder.close()
        gain = self._encode_rescaled() if self._rescale else 1.0
        for stem, path in self._paths.items():
            try:
                os.replace(self._encoders[stem].path, path)
            except OSError as error:
                raise _cannot_write(path, error) from None
        clipped = {stem: encoder.clipped for stem, encoder in self._encoders.items()}
        self._made_folders.clear()
        return Written(files=dict(self._paths), clipped=clipped, gain=gain)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandon()  # after a commit nothing is left to remove but the floats that were rescaled

    def _encode_rescaled(self) -> float:
        peak = max((encoder.peak for encoder in self._encoders.values()), default=0.0)
        gain = min(1.0, self._format.highest / peak) if peak else 1.0
        for stem, floats in list(self._encoders.items()):
            self._encoders[stem] = encoder = self._open(self._paths[stem], self._format)
            with soundfile.SoundFile(floats.path) as source:
                while len(samples := source.read(BLOCK, dtype="float32", always_2d=True)):
                    encoder.write(samples.T * np.float32(gain))
            encoder.close()
            floats.path.unlink(missing_ok=True)
        return gain

    def _open(self, target: Path, audio_format: AudioFormat) -> _Encoder:
        temporary = target.parent / f".tfswa-sep-{secrets.token_hex(6)}.tmp"
        self._temporaries.append(temporary)
        # Where the length is unknown a song of many hours cannot be excluded.
        size = None if self._frames is None else self._frames * self._channels * audio_format.sample_bytes
        large = size is None or size > WAV_BYTES
        return _Encoder(temporary, target, self._rate, self._channels, audio_format, large=large)

    def _check_target(self, path: Path) -> None:
        if path.is_dir():
            raise OutputError(f"{path} is a folder: a stem cannot replace it; choose another --out or --name")
        if not self._overwrite and path.exists():
            raise OutputError(f"{path} exists: allow overwriting it, or choose another folder with --out")

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for parent in reversed(missing):
            try:
                parent.mkdir(exist_ok=True)
            except OSError as error:
                raise _cannot_write(parent, error) from None
            self._made_folders.append(parent)

    def _check_space(self) -> None:
        if self._frames is None or self._format.container != "wav":
            return
        sample_bytes = self._format.sample_bytes + (4 if self._rescale else 0)
        needed = len(self._paths) * self._frames * self._channels * sample_bytes
        folder = next(iter(self._paths.values())).parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutputError(
                f"the stems need {needed / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB free: make room, "
                "or choose another folder with --out, or smaller files with --format flac"
            )

    def _abandon(self) -> None:
        for encoder in self._encoders.values():
            with suppress(OutputError):
                encoder.close()
        for temporary in self._temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        for folder in reversed(self._made_folders):
            with suppress(OSError):
                folder.rmdir()
        self._encoders, self._temporaries, self._made_folders = {}, [], []


class _Encoder:
    """One file being written; counts its frames, clipped samples and peak."""

    def __init__(
        self, path: Path, target: Path, rate: int, channels: int, audio_format: AudioFormat, *, large: bool
    ) -> None:
        self.path = path
        self.frames = 0
        self.clipped = 0
        self.peak = 0.0
        self._target = target
        self._format = audio_format
        container = "FLAC" if audio_format.container == "flac" else "RF64" if large else "WAV"
        try:
            path.touch()  # libsndfile's own error does not say why a file cannot be made
            self._file = soundfile.SoundFile(
                str(path), "w", rate, channels, subtype=audio_format.subtype, format=container
            )
        except (OSError, soundfile.LibsndfileError) as error:
            raise _cannot_write(target, error) from None

    def write(self, samples: Samples) -> None:
        """Append (c, n) samples."""
        if not samples.shape[1]:
            return
        self.frames += samples.shape[1]
        self.peak = max(self.peak, float(np.abs(samples).max()))
        try:
            self._file.write(interleave(self._encode(samples)))
        except (OSError, soundfile.LibsndfileError) as error:
            raise _cannot_write(self._target, error) from None

    def _encode(self, samples: Samples) -> Samples | NDArray[np.int32]:
        steps = self._format.steps
        if steps is None:
            return samples
        whole = np.rint(samples * np.float32(steps))  # exact: a power of two
        limited = np.clip(whole, -steps, steps - 1)
        self.clipped += int(np.count_nonzero(whole != limited))
        integers: NDArray[np.int32] = limited.astype(np.int32)
        return np.left_shift(
            integers, 32 - int(self._format.bit_depth)
        )  # libsndfile takes the upper bits of 32

    def close(self) -> None:
        """Write what is buffered through to the disk."""
        if self._file.closed:
            return
        try:
            self._file.close()
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        except (OSError, soundfile.LibsndfileError) as error:
            raise _cannot_write(self._target, error) from None


def _cannot_write(path: Path, error: Exception) -> OutputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    # libsndfile has no words for a failed write: its one common cause is a full disk.
    reason = reason if reason and not isinstance(error, soundfile.LibsndfileError) else "the disk may be full"
    return OutputError(f"cannot write {path} ({reason}): make room, or choose another folder with --out")
