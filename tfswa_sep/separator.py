"""A model, and what goes through it: an array, or a song's blocks on their way into files (song_files.py).

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from tfswa_sep import registry
from tfswa_sep.audio.decode import LOUDEST, RATES
from tfswa_sep.audio.resample import Samples, resample
from tfswa_sep.audio.stem_writer import write_stems
from tfswa_sep.constants import BLOCK_SAMPLES, MODEL_CHANNELS
from tfswa_sep.errors import InputError, ModelError, UsageError
from tfswa_sep.inference.backend import Backend, load_backend
from tfswa_sep.inference.hardware import prefers_int8
from tfswa_sep.inference.overlap_add import overlap_add, plan_segments
from tfswa_sep.inference.stem_matrix import parse_stems
from tfswa_sep.pipeline import FileOptions, Progress, SeparationResult, separate_song


class Stems(dict[str, Samples]):
    """Stem -> samples (c, n) or (n,), float32 at full scale +-1; `sample_rate` is theirs, in Hz."""

    def __init__(self, stems: Mapping[str, Samples], *, sample_rate: int) -> None:
        super().__init__(stems)
        self.sample_rate = sample_rate

    @property
    def samples(self) -> int:
        """n, of each stem."""
        return int(next(iter(self.values())).shape[-1])


class SaveOptions(TypedDict, total=False):
    """How stems become files."""

    audio_format: str  # "wav" (the default) or "flac"
    bit_depth: str | None  # "32f" (wav), "24" or "16"; None for 32f in wav and 24 in flac
    rescale: bool  # bring too loud stems under full scale by one common gain
    overwrite: bool  # False refuses to replace files that are there


class Separator:
    """A model that separates songs; it is loaded on first use and may be used from several threads.

    model: a registered name, an hf:// or https:// address, a model file's path, a ModelInfo, a loaded
    Backend, or None for the default.
    backend: "auto", "onnx" or "torch".  device: "auto", "cpu", "cuda", "cuda:N", "mps" or "coreml".
    precision: "fp32", "int8", or "auto" for the fastest here: see registry.with_precision, hardware.prefers_int8.
    threads: CPU threads, None for one a physical core.
    batch_size: segments a call (PyTorch: 16 at most), None for as many as the device is best with.
    Raises UsageError for a batch size below 1.
    """

    def __init__(
        self,
        model: str | Path | registry.ModelInfo | Backend | None = None,
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self._model = model
        self._choice = (backend, device, precision, threads)
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"a batch of {batch_size} segments cannot be computed: give 1 or more")
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._loaded: Backend | None = None
        self._name = ""

    @classmethod
    def from_checkpoint(cls, path: str | Path, **options: Any) -> Separator:
        """The separator of a model file, .onnx or .safetensors, loaded at once; options as of the class.

        Raises ModelError for a file that is not there, damaged or no model of ours; DeviceError.
        """
        separator = cls(registry.find_model(os.path.abspath(os.path.expanduser(path))), **options)
        _ = separator.backend
        return separator

    @property
    def backend(self) -> Backend:
        """The loaded model. Raises ModelError, DeviceError or UsageError when it cannot be loaded."""
        with self._lock:
            if self._loaded is None:
                self._name, self._loaded = self._load()
            return self._loaded

    @property
    def stems(self) -> tuple[str, ...]:
        """The model's stems."""
        return self.backend.stems

    def _load(self) -> tuple[str, Backend]:
        backend, device, precision, threads = self._choice
        if self._model is None:
            info = registry.default_model()
        elif isinstance(self._model, (str, Path)):
            info = registry.find_model(self._model)
        elif isinstance(self._model, registry.ModelInfo):
            info = self._model
        else:
            return self._model.name, self._model
        info = registry.with_precision(info, precision, prefer_int8=prefers_int8(device))
        loaded = load_backend(
            info, registry.fetch, backend=backend, device=device, precision=precision, threads=threads
        )
        return info.name, loaded

    def separate(
        self,
        audio: NDArray[np.floating],
        rate: int,
        *,
        stems: str | Sequence[str] | None = None,
        on_progress: Progress | None = None,
    ) -> Stems:
        """Separate samples in memory.

        audio: (c, n) with c 1 or 2, or (n,), at full scale +-1.  rate: Hz.
        stems: see stems.parse_stems, None for all.
        on_progress: called after each piece, in this thread, with the seconds done and in all.
        Returns stem -> float32 array of the same shape and rate.
        Raises InputError for another shape or samples that are no numbers, UsageError for an unknown stem.
        """
        samples = np.atleast_2d(_as_floats(audio))
        frames = samples.shape[-1]
        if samples.ndim != 2 or len(samples) not in (1, 2) or not frames:
            raise InputError(f"expected samples of shape (1 or 2 channels, n > 0), got {np.shape(audio)}")
        cut = (samples[:, start : start + BLOCK_SAMPLES] for start in range(0, frames, BLOCK_SAMPLES))
        parts, done = [], 0
        for part in self._stream(cut, rate, stems=stems, batch_size=self._batch_size):
            parts.append(part)
            done += part.samples
            if on_progress and part.samples:
                on_progress(done / rate, frames / rate)
        return _join_stems(parts, np.shape(audio))

    def stream(
        self, blocks: Iterable[NDArray[np.floating]], rate: int, *, stems: str | Sequence[str] | None = None
    ) -> Iterator[Stems]:
        """Separate samples that come block by block, such as a recording under way; memory does not grow.

        blocks: (c, n) each, c 1 or 2 and the same for all, any n, at full scale +-1.  rate: Hz.
        Yields blocks of stems, each stem (c, m): the first when `backend.workers + 1` segments of the model
        have come in, since that many are computed side by side. In all they have as many samples as went in.
        Raises as `separate` does, when the block in question is reached.
        """
        # Who waits for a recording is not to wait for a GPU's whole batch of it, a minute and more.
        return self._stream(blocks, rate, stems=stems, batch_size=self._batch_size or 1)

    def _stream(
        self,
        blocks: Iterable[NDArray[np.floating]],
        rate: int,
        *,
        stems: str | Sequence[str] | None,
        batch_size: int | None,
    ) -> Iterator[Stems]:
        names, mix = parse_stems(stems, self.stems)
        separate = partial(self._separate_blocks, mix=mix, batch_size=batch_size)
        return _stream_stems(blocks, rate, names, separate, model_rate=self.backend.sample_rate)

    def save(self, stems: Stems, folder: str | Path, **options: Unpack[SaveOptions]) -> dict[str, Path]:
        """Write stems to `folder`/<stem>.<extension>, all of them or none: see SaveOptions."""
        return write_stems(stems, stems.sample_rate, Path(folder), **options)

    def separate_file(
        self, path: str | Path, *, on_progress: Progress | None = None, **options: Unpack[FileOptions]
    ) -> SeparationResult:
        """Separate a song into files with its own sample rate, channels and length, all of them or none.

        on_progress: called after each piece, in this thread.  options: see song_files.FileOptions.
        Raises InputError, UsageError, ModelError, DeviceError or OutputError; then nothing is left behind.
        """
        model = self.backend
        separate = partial(self._separate_blocks, batch_size=self._batch_size)
        return separate_song(path, model, separate, model_name=self._name, on_progress=on_progress, **options)

    def _separate_blocks(
        self,
        blocks: Iterable[Samples],
        mix: NDArray[np.float32],
        channels: int,
        *,
        batch_size: int | None,
    ) -> Iterator[Samples]:
        """Blocks (c, n) at the model's rate to stems (k, channels, n); a mono song's two become one again.

        batch_size: segments computed at once, None for as many as the device is best with.
        """
        model = self.backend
        plan = plan_segments(segment=model.segment_samples, margin=model.margin_samples)
        all_stems = np.array_equal(mix, np.eye(len(model.stems)))  # then there is nothing to mix

        def run(segments: Samples) -> Samples:
            if (
                not segments.any()
            ):  # silence has silent stems, whatever a network's biases say, and costs nothing
                return np.zeros((len(segments), len(mix), *segments.shape[1:]), np.float32)
            return model(segments, mix=None if all_stems else mix)

        size = batch_size or model.batch_size
        workers = max(1, model.workers // size)  # of `size` segments each, computed at once
        for block in overlap_add(blocks, run, plan, batch_size=size, workers=workers):
            if not np.isfinite(block.sum()):
                raise ModelError(
                    "the network gave numbers that are not finite: try --backend onnx or --device cpu"
                )
            yield block.mean(axis=1, keepdims=True) if channels == 1 else block


def separate(
    path: str | Path,
    *,
    model: str | Path | registry.ModelInfo | Backend | Separator | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    on_progress: Progress | None = None,
    **options: Unpack[FileOptions],
) -> SeparationResult:
    """Separate one song into files: see Separator and Separator.separate_file.

    For several songs give one Separator as the model: it is loaded once.
    """
    if not isinstance(model, Separator):
        model = Separator(model, backend=backend, device=device, precision=precision, threads=threads)
    return model.separate_file(path, on_progress=on_progress, **options)


def load_model(
    model: str | Path | registry.ModelInfo | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Backend:
    """The loaded network itself: segments (b, c, n) to stems (b, s, c, n); see backends.Backend."""
    return Separator(model, backend=backend, device=device, precision=precision, threads=threads).backend


def _as_floats(samples: NDArray[np.floating]) -> Samples:
    """Samples in float32. Raises InputError for integers, whose full scale is another."""
    found = np.asarray(samples)
    if np.issubdtype(found.dtype, np.integer):
        raise InputError(f"expected samples at full scale +-1, got {found.dtype}: divide 16 bits by 32768")
    return np.asarray(found, dtype=np.float32)


def _stream_stems(
    blocks: Iterable[NDArray[np.floating]],
    rate: int,
    names: Sequence[str],
    separate: Callable[..., Iterator[Samples]],
    *,
    model_rate: int,
) -> Iterator[Stems]:
    """Blocks (c, n) at `rate` in Hz to blocks of the stems `names`, each (c, m): see Separator.stream.

    separate: blocks at `model_rate`, with the model's channels, and channels=c, to stems (k, c, m).
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"{rate} samples a second is no rate for music")
    incoming = (_as_floats(block) for block in blocks)
    first = next(incoming, None)
    if first is None or first.ndim != 2 or len(first) not in (1, 2):
        found = None if first is None else first.shape
        raise InputError(f"expected blocks of shape (1 or 2 channels, n), got {found}")
    channels = len(first)
    taken, given = 0, 0  # samples at `rate`

    def checked() -> Iterator[Samples]:
        nonlocal taken
        for block in chain([first], incoming):
            if block.ndim != 2 or len(block) != channels:
                raise InputError(f"expected a block of {channels} channels, got the shape {block.shape}")
            if block.size and not np.abs(block).max() <= LOUDEST:  # False for NaN too
                raise InputError("the samples hold numbers that are not finite, or no sound")
            taken += block.shape[1]
            yield np.repeat(block, MODEL_CHANNELS // channels, axis=0)

    separated = separate(resample(checked(), rate, model_rate), channels=channels)
    flat = (block.reshape(-1, block.shape[-1]) for block in separated)  # (k * c, n)
    for back in resample(flat, model_rate, rate):
        kept = back[:, : taken - given]
        given += kept.shape[1]
        yield Stems(dict(zip(names, kept.reshape(len(names), channels, -1), strict=True)), sample_rate=rate)
    if given < taken:  # a resampler may end a sample early
        silence = np.zeros((channels, taken - given), np.float32)
        yield Stems(dict.fromkeys(names, silence), sample_rate=rate)


def _join_stems(parts: Sequence[Stems], shape: tuple[int, ...]) -> Stems:
    """Blocks of stems, one behind the other, each stem in `shape`."""
    names, rate = list(parts[0]), parts[0].sample_rate
    joined = {name: np.concatenate([part[name] for part in parts], axis=1).reshape(shape) for name in names}
    return Stems(joined, sample_rate=rate)
