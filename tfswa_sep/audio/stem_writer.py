"""Write the stems of one song to disk, all of them or none.

Each stem is written to a hidden temporary file in its target's folder and renamed when the whole song is done. After
an error or an interruption, no temporary file is left, nor an empty folder that was created for it.

With `rescale` the stems are first kept as floats; if any is above full scale, all are turned down by one common gain.
With `remainder` one stem absorbs what rounding, clipping and resampling changed in the others.

Each stem is encoded in its own thread while the next block is computed: encoding a song's stems as MP3 takes
longer than separating it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa_sep.audio.atomic_file import AtomicFile, remove_abandoned, sync_folder
from tfswa_sep.audio.decode import soundfile_name
from tfswa_sep.audio.encode import Encoder, cannot_write
from tfswa_sep.audio.formats import AudioFormat, find_format
from tfswa_sep.audio.reblock import BlockReader
from tfswa_sep.audio.resample import Samples, frames_at, resample
from tfswa_sep.audio.stem_mp4 import write_stem_file
from tfswa_sep.constants import BLOCK_SAMPLES
from tfswa_sep.errors import InputError, OutputError

WAV_BYTES = 4 * 10**9  # WAV's 32-bit sizes end at 4.29 GB: larger files are RF64


@dataclass(frozen=True, kw_only=True)
class Written:
    """What StemWriter.commit wrote."""

    files: dict[str, Path]  # stem -> file
    clipped: dict[str, int]  # stem -> number of samples clipped at full scale, over all channels
    gain: float  # applied to all stems by rescale; 1.0 if not needed
    sum_error: float  # largest difference between the stems' sum and the mixture, if `remainder` was given
    stem_file_peak: float  # loudest sample in the stem file's tracks, 0.0 without a stem file


class Record(Protocol):
    """Knows which files earlier runs wrote, even one that was killed; see batch.manifest."""

    def owns(self, path: Path) -> bool:
        """Whether an earlier run wrote this file and it has not changed since, so that it may be replaced."""
        ...

    def announce(self, files: Mapping[Path, Path]) -> None:
        """Record complete temporary files (temporary -> target) that are about to be renamed. Raises OutputError."""
        ...


class StemWriter:
    """Writes stems that arrive as (s, c, n) blocks; a context manager.

    Entering creates the folders and opens the temporary files. Leaving without `commit` removes both.

    Args:
        paths: Stem -> target, in the order of the blocks.
        audio_format: Of the files.
        rate: Hz.
        channels: Of each stem.
        frames: Expected samples per channel, None if unknown. Large files become RF64, and free space is
            checked in advance.
        rescale: Turn all stems down together if one would clip.
        overwrite: Replace any existing file; otherwise only those that `record` owns.
        record: See Record.
        mixture: The song as (c, n) blocks, for `remainder`.
        remainder: The stem that becomes `mixture` minus the others; "" for none.
        stem_file: Where to write all stems as one file too, see stem_mp4.py.
        tags: Title, artist and so on, see tags.py; each stem's title gets the stem's name appended.
        cover: An image file's content.

    Raises:
        OutputError: From every step; one line that names the file or folder.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        *,
        audio_format: AudioFormat,
        rate: int,
        channels: int,
        frames: int | None = None,
        rescale: bool = False,
        overwrite: bool = True,
        record: Record | None = None,
        mixture: Iterator[Samples] | None = None,
        remainder: str = "",
        stem_file: Path | None = None,
        tags: Mapping[str, str] | None = None,
        cover: bytes | None = None,
    ) -> None:
        self._paths = dict(paths)
        self._format = audio_format
        self._rate = rate
        self._channels = channels
        self._rescale = rescale
        self._overwrite = overwrite
        self._record = record
        self._frames = frames
        self._mixture = BlockReader(mixture, channels) if mixture else None
        self._sum_error = 0.0
        self._sum_peak = 0.0
        self._remainder = remainder
        self._stem_file = stem_file
        self._tags = dict(tags or {})
        self._cover = cover
        self._made_folders: list[Path] = []
        self._encoders: dict[str, Encoder] = {}
        self._files: dict[str, AtomicFile] = {}  # stem -> temporary file
        self._floats: list[AtomicFile] = []  # intermediate files of rescale
        self._threads = ThreadPoolExecutor(len(self._paths), thread_name_prefix="encode")
        self._encoding: list[Future[None]] = []  # the latest block, one task per stem

    def __enter__(self) -> StemWriter:
        first_format = find_format("wav", "32f") if self._rescale else self._format
        try:
            targets = [*self._paths.values(), *([self._stem_file] if self._stem_file else [])]
            for path in targets:
                self._check_target(path)
            for path in targets:
                self._make_folder(path.parent)
                remove_abandoned(path.parent)
            for stem, path in self._paths.items():
                self._open(stem, path, first_format)
            self._check_space()
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):  # from checking a path: name too long, no permission
                raise cannot_write(path, error) from None
            raise
        return self

    @property
    def unfinished(self) -> dict[str, Path]:
        """Stem -> the temporary file that it is written to; a WAV file can be read as it grows."""
        return {stem: file.path for stem, file in self._files.items()}

    def write(self, block: Samples) -> None:
        """Append (s, c, n) samples, s in the order of `paths`."""
        stems: dict[str, Samples] = dict(zip(self._paths, block, strict=True))
        if self._mixture and self._remainder:
            self._adjust_remainder(stems, self._mixture.read(block.shape[-1]).astype(np.float64))
        if self._stem_file and block.shape[-1]:
            self._sum_peak = max(self._sum_peak, float(np.abs(sum(stems.values())).max()))
        self._encode(stems)

    def commit(self) -> Written:
        """Finish the files, and rename all of them to their targets."""
        self._close_encoders()
        gain = self._encode_rescaled() if self._rescale else 1.0
        targets = dict(self._paths)
        if self._stem_file:
            self._files["stem file"] = self._join()
            targets["stem file"] = self._stem_file
        for path in targets.values():
            self._check_target(path)  # again: a file may have appeared in the meantime
        # Decided before the record names this run's files: those of another run could appear right now.
        replaceable = {path for path in targets.values() if self._may_replace(path)}
        if self._record:
            self._record.announce({self._files[stem].path: path for stem, path in targets.items()})
        for stem, path in targets.items():
            try:
                self._files[stem].commit(path, overwrite=path in replaceable)
            except OSError as error:
                raise cannot_write(path, error) from None
        for folder in {path.parent for path in targets.values()}:
            sync_folder(folder)
        clipped = {stem: encoder.clipped for stem, encoder in self._encoders.items()}
        self._made_folders.clear()
        peaks = [encoder.peak for encoder in self._encoders.values()]
        return Written(
            files=dict(self._paths),
            clipped=clipped,
            gain=gain,
            sum_error=self._sum_error,
            stem_file_peak=max(self._sum_peak * gain, *peaks) if self._stem_file else 0.0,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandon()  # after a commit only intermediate floats are left to remove

    def _adjust_remainder(self, stems: dict[str, Samples], mixture: NDArray[np.float64]) -> None:
        steps = self._format.steps
        grid = np.float32(steps or 2**23)  # float32 sums are exact on this grid
        rest = np.rint(mixture * steps) / steps if steps else mixture.copy()  # integers sum exactly
        for stem, samples in stems.items():
            whole = np.rint(samples * grid)
            stems[stem] = samples = (np.clip(whole, -steps, steps - 1) if steps else whole) / grid
            if stem != self._remainder:
                rest -= samples
        stems[self._remainder] = rest.astype(np.float32)
        if mixture.size:
            total = sum(samples.astype(np.float64) for samples in stems.values())
            self._sum_error = max(self._sum_error, float(np.abs(total - mixture).max()))

    def _encode(self, stems: dict[str, Samples]) -> None:
        """Encode a block in the threads, once they have finished the previous one."""
        self._wait()
        self._encoding = [
            self._threads.submit(self._encoders[stem].write, samples) for stem, samples in stems.items()
        ]

    def _wait(self) -> None:
        wait(self._encoding)  # for all of them, before the first error is raised
        for encoding in self._encoding:
            encoding.result()

    def _close_encoders(self) -> None:
        self._wait()
        for encoder in self._encoders.values():
            encoder.close()

    def _encode_rescaled(self) -> float:
        peak = max((encoder.peak for encoder in self._encoders.values()), default=0.0)
        # Slightly less, or samples that are rounded up afterwards would clip.
        gain = 1.0 if peak <= self._format.highest else self._format.highest / peak * (1 - 2**-22)
        with ExitStack() as opened:
            sources = {}
            for stem, path in self._paths.items():
                self._floats.append(floats := self._files.pop(stem))
                sources[stem] = opened.enter_context(soundfile.SoundFile(soundfile_name(floats.path)))
                self._open(stem, path, self._format)
            while True:
                stems = {
                    stem: source.read(BLOCK_SAMPLES, dtype="float32", always_2d=True).T * np.float32(gain)
                    for stem, source in sources.items()
                }
                if not next(iter(stems.values())).size:
                    break
                self._encode(stems)
        self._close_encoders()
        for floats in self._floats:
            floats.remove()
        return gain

    def _open(self, stem: str, target: Path, audio_format: AudioFormat) -> None:
        try:
            self._files[stem] = temporary = AtomicFile(target.parent)
        except OSError as error:
            raise cannot_write(target, error) from None
        # A song of unknown length may last many hours.
        size = None if self._frames is None else self._frames * self._channels * audio_format.sample_bytes
        large = size is None or size > WAV_BYTES
        title = {"title": f"{self._tags['title']} ({stem})"} if "title" in self._tags else {}
        self._encoders[stem] = Encoder(
            temporary.path,
            target,
            self._rate,
            self._channels,
            audio_format,
            large=large,
            tags={**self._tags, **title} if audio_format == self._format else {},
            cover=self._cover if audio_format == self._format else None,
        )

    def _join(self) -> AtomicFile:
        assert self._stem_file is not None
        try:
            self._files["stem file"] = joined = AtomicFile(self._stem_file.parent)
            files = {stem: self._files[stem].path for stem in self._paths}
            frames = next(iter(self._encoders.values())).frames
            write_stem_file(joined.path, files, self._rate, frames, tags=self._tags, cover=self._cover)
        except OSError as error:
            raise cannot_write(self._stem_file, error) from None
        return joined

    def _check_target(self, path: Path) -> None:
        if path.is_dir():
            raise OutputError(
                f"{path} is a folder, so no stem can be written there: choose another --out or --name"
            )
        if os.path.lexists(path) and not self._may_replace(path):
            raise OutputError(
                f"{path} already exists: use --overwrite to replace it, or choose another folder with --out"
            )

    def _may_replace(self, path: Path) -> bool:
        return self._overwrite or (self._record is not None and self._record.owns(path))

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for parent in reversed(missing):
            self._made_folders.append(parent)  # first: an interruption may come at any moment
            try:
                parent.mkdir(exist_ok=True)
            except OSError as error:
                raise cannot_write(parent, error) from None

    def _check_space(self) -> None:
        if self._frames is None or self._format.container != "wav":
            return
        sample_bytes = self._format.sample_bytes + (4 if self._rescale else 0)
        needed = len(self._paths) * self._frames * self._channels * sample_bytes
        folder = next(iter(self._paths.values())).parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutputError(
                f"the stems need {needed / 1e6:.0f} MB, but {folder} has only {free / 1e6:.0f} MB free: "
                "free up space, choose another folder with --out, or use --format flac"
            )

    def _abandon(self) -> None:
        self._threads.shutdown(cancel_futures=True)  # never close a file while a thread is writing to it
        for encoder in self._encoders.values():
            encoder.abandon()
        for temporary in [*self._files.values(), *self._floats]:
            temporary.remove()
        for folder in reversed(self._made_folders):
            with suppress(OSError):
                folder.rmdir()
        self._encoders, self._files, self._floats, self._made_folders = {}, {}, [], []


def describe_clipping(written: Written) -> str:
    """A line about the clipped samples, "" if there are none."""
    clipped = {stem: count for stem, count in written.clipped.items() if count}
    counts = ", ".join(f"{stem} {count}" for stem, count in clipped.items())
    return f"samples above full scale were clipped ({counts})" if clipped else ""


def write_stems(
    stems: Mapping[str, Samples],
    sample_rate: int,
    folder: Path,
    *,
    audio_format: AudioFormat,
    rescale: bool = False,
    overwrite: bool = True,
) -> Written:
    """Write stems to `folder`/<stem>.<extension>, all of them or none.

    Args:
        stems: Stem -> samples, (c, n) or (n,).
        sample_rate: Hz.
        folder: Where to.
        audio_format: Of the files.
        rescale: Turn all stems down together if one would clip.
        overwrite: Replace existing files.

    Raises:
        InputError: The stems differ in shape, have unusable names, or contain NaN or infinite samples.
        OutputError: A file cannot be written; nothing is left behind.
    """
    if len({np.shape(samples) for samples in stems.values()}) != 1:
        raise InputError("expected one or more stems, all of the same shape")
    if odd := [name for name in stems if Path(name).name != name]:
        raise InputError(f"a stem cannot be called {odd[0]!r}: not a valid file name")
    parts = np.stack([np.atleast_2d(samples) for samples in stems.values()])  # (k, c, n)
    if not np.isfinite(parts).all():
        raise InputError("the stems contain NaN or infinite samples")
    frames = parts.shape[-1]
    rate = audio_format.nearest_rate(sample_rate)
    starts = range(0, frames, BLOCK_SAMPLES)
    blocks = (
        parts[..., start : start + BLOCK_SAMPLES].reshape(-1, min(BLOCK_SAMPLES, frames - start))
        for start in starts
    )
    with StemWriter(
        {name: folder / f"{name}{audio_format.extension}" for name in stems},
        audio_format=audio_format,
        rate=rate,
        channels=parts.shape[1],
        frames=frames_at(frames, sample_rate, rate),
        rescale=rescale,
        overwrite=overwrite,
    ) as writer:
        for block in resample(blocks, sample_rate, rate):
            writer.write(block.reshape(*parts.shape[:2], -1))
        return writer.commit()
