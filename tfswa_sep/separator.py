"""A model, and what goes through it: an array, or a song's blocks on their way into files (song_files.py).

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from tfswa_sep import registry
from tfswa_sep.audio import BLOCK, LOUDEST, RATES
from tfswa_sep.backends import Backend, load_backend
from tfswa_sep.errors import InputError, ModelError
from tfswa_sep.overlap import overlap_add, plan_segments
from tfswa_sep.resample import Samples, resample
from tfswa_sep.song_files import FileOptions, Progress, separate_song
from tfswa_sep.song_files import SeparationResult as SeparationResult
from tfswa_sep.stems import parse_stems


class Separator:
    """A model that separates songs; it is loaded on first use and may be used from several threads.

    model: a registered name, a model file's path, a ModelInfo, a loaded Backend, or None for the default.
    backend: "auto", "onnx" or "torch".  device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    threads: CPU threads, None for one a physical core.  batch_size: segments computed at once (helps GPUs).
    """

    def __init__(
        self,
        model: str | Path | registry.ModelInfo | Backend | None = None,
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        batch_size: int = 1,
    ) -> None:
        self._model = model
        self._choice = (backend, device, threads)
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._loaded: Backend | None = None
        self._name = ""

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
        backend, device, threads = self._choice
        if self._model is None:
            info = registry.default_model()
        elif isinstance(self._model, (str, Path)):
            info = registry.find_model(self._model)
        elif isinstance(self._model, registry.ModelInfo):
            info = self._model
        else:
            return self._model.name, self._model
        return info.name, load_backend(info, registry.fetch, backend=backend, device=device, threads=threads)

    def separate(
        self, audio: NDArray[np.floating], rate: int, *, stems: str | Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Separate samples in memory.

        audio: (c, n) with c 1 or 2, or (n,), at full scale +-1.  rate: Hz.
        stems: see stems.parse_stems, None for all.
        Returns stem -> float32 array of the same shape and rate.
        Raises InputError for another shape, no samples, or samples that are no numbers; UsageError for an
        unknown stem.
        """
        samples = np.atleast_2d(np.asarray(audio, dtype=np.float32))
        channels, frames = samples.shape if samples.ndim == 2 else (0, 0)
        if channels not in (1, 2) or not frames:
            raise InputError(f"expected samples of shape (1 or 2 channels, n > 0), got {np.shape(audio)}")
        if not RATES[0] <= rate <= RATES[1]:
            raise InputError(f"{rate} samples a second is no rate for music")
        if not np.abs(samples).max() <= LOUDEST:  # False for NaN too
            raise InputError("the samples hold numbers that are not finite, or no sound")
        names, mix = parse_stems(stems, self.stems)
        stereo = np.repeat(samples, self.backend.channels // channels, axis=0)
        cut = (stereo[:, start : start + BLOCK] for start in range(0, frames, BLOCK))
        blocks = self._separate_blocks(resample(cut, rate, self.backend.sample_rate), mix, channels)
        flat = (block.reshape(-1, block.shape[-1]) for block in blocks)  # (k * c, n)
        parts = list(resample(flat, self.backend.sample_rate, rate))
        joined = np.concatenate([*parts, np.zeros((len(names) * channels, 0), np.float32)], axis=1)[
            :, :frames
        ]
        joined = np.pad(joined, ((0, 0), (0, frames - joined.shape[1])))
        stacked = joined.reshape(len(names), *np.shape(audio))
        return dict(zip(names, stacked, strict=True))

    def separate_file(
        self, path: str | Path, *, on_progress: Progress | None = None, **options: Unpack[FileOptions]
    ) -> SeparationResult:
        """Separate a song into files with its own sample rate, channels and length, all of them or none.

        on_progress: called after each piece, in this thread.  options: see song_files.FileOptions.
        Raises InputError, UsageError, ModelError, DeviceError or OutputError; then nothing is left behind.
        """
        model = self.backend

        return separate_song(
            path, model, self._separate_blocks, model_name=self._name, on_progress=on_progress, **options
        )

    def _separate_blocks(
        self, blocks: Iterable[Samples], mix: NDArray[np.float32], channels: int
    ) -> Iterator[Samples]:
        """Blocks (c, n) at the model's rate to stems (k, channels, n); a mono song's two become one again."""
        model = self.backend
        plan = plan_segments(segment=model.segment_samples, margin=model.margin_samples)
        all_stems = np.array_equal(mix, np.eye(len(model.stems)))  # then there is nothing to mix

        def run(segments: Samples) -> Samples:
            if (
                not segments.any()
            ):  # silence has silent stems, whatever a network's biases say, and costs nothing
                return np.zeros((len(segments), len(mix), *segments.shape[1:]), np.float32)
            return model(segments, mix=None if all_stems else mix)

        for block in overlap_add(blocks, run, plan, batch_size=self._batch_size):
            if not np.isfinite(block.sum()):
                raise ModelError(
                    "the network gave numbers that are not finite: try --backend onnx or --device cpu"
                )
            yield block.mean(axis=1, keepdims=True) if channels == 1 else block


def separate_file(
    path: str | Path,
    *,
    model: str | Path | registry.ModelInfo | Backend | Separator | None = None,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    on_progress: Progress | None = None,
    **options: Unpack[FileOptions],
) -> SeparationResult:
    """Separate one song into files: see Separator and Separator.separate_file.

    For several songs give one Separator as the model: it is loaded once.
    """
    if not isinstance(model, Separator):
        model = Separator(model, backend=backend, device=device, threads=threads)
    return model.separate_file(path, on_progress=on_progress, **options)


def load_model(
    model: str | Path | registry.ModelInfo | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Backend:
    """The loaded network itself: segments (b, c, n) to stems (b, s, c, n); see backends.Backend."""
    return Separator(model, backend=backend, device=device, threads=threads).backend
