"""The Python API: choose, fetch and load a model once, then separate songs.

Axis letters: b batch, s stem of the model, k requested stem, c channel, n samples.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, tee
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from tfswa_sep import registry
from tfswa_sep.audio.decode import MAX_PEAK, SAMPLE_RATES
from tfswa_sep.audio.formats import find_format
from tfswa_sep.audio.resample import Samples, convert, extend, margins
from tfswa_sep.audio.stem_writer import Record, describe_clipping, write_stems
from tfswa_sep.constants import BLOCK_SAMPLES, MODEL_CHANNELS
from tfswa_sep.errors import DeviceError, InputError, UsageError
from tfswa_sep.inference.backend import Backend, can_fall_back, choose_backend, load_backend
from tfswa_sep.inference.bag import Bag
from tfswa_sep.inference.ensemble import Ensemble
from tfswa_sep.inference.hardware import prefers_int8
from tfswa_sep.inference.live_windows import LiveWindows
from tfswa_sep.inference.stem_matrix import parse_stems, shares_of_rest
from tfswa_sep.options import (
    LATENCIES,
    Choices,
    LiveTiming,
    OutputChoices,
    OutputOptions,
    Runtime,
    RuntimeChoices,
    kind_of_file,
    override,
    take_fields,
)
from tfswa_sep.pipeline import Progress, SeparationResult, separate_song, separate_to_rate


class Stems(dict[str, Samples]):
    """Stem -> samples (c, n) or (n,), float32 at full scale +-1, with their `sample_rate` in Hz."""

    def __init__(self, stems: Mapping[str, Samples], *, sample_rate: int) -> None:
        super().__init__(stems)
        self.sample_rate = sample_rate

    @property
    def samples(self) -> int:
        """The length n of each stem."""
        return int(next(iter(self.values())).shape[-1])


class LiveStream:
    """Separates sound as it is pushed; made by `Separator.live`.

    Attributes:
        names: The stems.
        sample_rate: Hz, of blocks and stems.
        channels: Of blocks and stems.
        delay_samples: How many samples the stems lag behind the blocks, always.
        latency: The same in seconds.
    """

    def __init__(
        self, model: Backend, names: Sequence[str], stem_matrix: NDArray[np.float32], timing: LiveTiming
    ) -> None:
        rate = model.sample_rate
        self._windows = LiveWindows(
            model, stem_matrix, window=round(timing.window * rate), lookahead=round(timing.lookahead * rate)
        )
        hop = min(max(1, round(timing.hop * rate)), self._windows.longest)
        self.names, self.sample_rate, self.channels = tuple(names), rate, model.channels
        self.delay_samples = hop + self._windows.lookahead
        self.latency = self.delay_samples / rate
        self._coming = np.zeros((model.channels, hop), np.float32)  # of which `_filled` samples have come
        self._filled = 0
        self._ready = np.zeros((len(names), model.channels, hop), np.float32)

    def push(self, block: NDArray[np.floating]) -> Stems:
        """Take the next samples, and return as many of the stems, `delay_samples` late; silence at first.

        Args:
            block: (c, n) with any n, at full scale +-1.

        Raises:
            InputError: The shape is wrong, or samples are NaN or infinite.
            ModelError: The network fails.
        """
        samples = _as_floats(block)
        if samples.ndim != 2 or len(samples) != self.channels:
            raise InputError(f"expected a block of {self.channels} channels, got shape {_shape(samples)}")
        if samples.size and not np.abs(samples).max() <= MAX_PEAK:  # False for NaN too
            raise InputError("the samples are not finite or far outside full scale")
        parts, start = [self._ready], 0
        while start < samples.shape[1]:
            taken = min(self._coming.shape[1] - self._filled, samples.shape[1] - start)
            self._coming[:, self._filled : self._filled + taken] = samples[:, start : start + taken]
            self._filled, start = self._filled + taken, start + taken
            if self._filled == self._coming.shape[1]:
                parts.append(self._windows.advance(self._coming))
                self._filled = 0
        ready = np.concatenate(parts, axis=2)
        self._ready = ready[..., samples.shape[1] :]
        return Stems(
            dict(zip(self.names, ready[..., : samples.shape[1]], strict=True)), sample_rate=self.sample_rate
        )


class Separator:
    """A model that separates songs; it is loaded on first use and may be used from several threads.

    Args:
        model: A registered name, an hf:// or https:// address, a model file's path, names and paths joined by "+"
            for the mean of several models (see Ensemble), a ModelInfo, a loaded Backend, or None for the default.
        runtime: See Runtime.
        **choices: Fields of Runtime, such as threads=4, that override those of `runtime`.

    Raises:
        UsageError: A choice is invalid.
    """

    def __init__(
        self,
        model: str | Path | registry.ModelInfo | Backend | None = None,
        *,
        runtime: Runtime = Runtime(),
        **choices: Unpack[RuntimeChoices],
    ) -> None:
        self._model = model
        self._runtime = override(runtime, choices)
        self._lock = threading.Lock()
        self._loaded: Backend | Ensemble | None = None
        self._name = ""

    @classmethod
    def from_checkpoint(cls, path: str | Path, **choices: Unpack[RuntimeChoices]) -> Separator:
        """Load a separator from a model file, .onnx or .safetensors.

        Args:
            path: The file.
            **choices: Fields of Runtime, such as threads=4.

        Raises:
            ModelError: The file is missing or damaged, or holds no model of tfswa-sep.
            DeviceError: The device is not available.
        """
        separator = cls(registry.find_model(os.path.abspath(os.path.expanduser(path))), **choices)
        _ = separator.backend
        return separator

    @property
    def backend(self) -> Backend | Ensemble:
        """The loaded model, or the models of an ensemble.

        Raises:
            TfswaError: It cannot be loaded: ModelError, DeviceError or UsageError.
        """
        with self._lock:
            if self._loaded is None:
                self._name, self._loaded = self._load()
            return self._loaded

    @property
    def network(self) -> Backend:
        """The loaded model. Raises UsageError if it is an ensemble, whose networks see different segments."""
        if isinstance(self.backend, Ensemble):
            raise UsageError("an ensemble has no single network: choose one of its models")
        return self.backend

    @property
    def stems(self) -> tuple[str, ...]:
        """The model's stems."""
        return self.backend.stems

    def _load(self) -> tuple[str, Backend | Ensemble]:
        if self._model is None:
            info = registry.default_model()
        elif isinstance(self._model, (str, Path)):
            info = registry.find_model(self._model)
        elif isinstance(self._model, registry.ModelInfo):
            info = self._model
        else:
            return self._model.name, self._model
        runtime = self._runtime
        prefer_int8 = prefers_int8(runtime)
        info = registry.with_precision(info, runtime.precision, prefer_int8=prefer_int8)
        if not info.members:
            return info.name, _load_model(info, runtime)
        return info.name, Ensemble(tuple(_load_model(member, runtime) for member in info.members))

    def separate(
        self,
        audio: NDArray[np.floating],
        rate: int,
        *,
        stems: str | Sequence[str] | None = None,
        on_progress: Progress | None = None,
    ) -> Stems:
        """Separate samples in memory.

        Args:
            audio: (c, n) with c 1 or 2, or (n,), at full scale +-1.
            rate: Hz.
            stems: See OutputOptions; None for all.
            on_progress: Called after each block, in this thread, with the seconds done and the total.

        Returns:
            Stem -> float32 array of the same shape and rate.

        Raises:
            InputError: The shape is wrong, or samples are NaN or infinite.
            UsageError: An unknown stem.
        """
        samples = np.atleast_2d(_as_floats(audio))
        frames = samples.shape[-1]
        if samples.ndim != 2 or len(samples) not in (1, 2) or not frames:
            raise InputError(f"expected samples of shape (1 or 2 channels, n > 0), got {_shape(audio)}")
        blocks = (samples[:, start : start + BLOCK_SAMPLES] for start in range(0, frames, BLOCK_SAMPLES))
        parts, done = [], 0
        for part in self._stream(blocks, rate, stems=stems, batch_size=self._runtime.batch_size):
            parts.append(part)
            done += part.samples
            if on_progress and part.samples:
                on_progress(done / rate, frames / rate)
        return _join_stems(parts, np.shape(audio))

    def stream(
        self, blocks: Iterable[NDArray[np.floating]], rate: int, *, stems: str | Sequence[str] | None = None
    ) -> Iterator[Stems]:
        """Separate samples that arrive in blocks, such as a live recording, with constant memory.

        Args:
            blocks: (c, n) each, with any n and the same c, 1 or 2, at full scale +-1.
            rate: Hz.
            stems: See OutputOptions; None for all.

        Yields:
            Blocks of stems, each stem (c, m). The first comes after `backend.workers + 1` segments of input, since that
            many are computed in parallel, or one more with shifts. Output and input have the same total length.

        Raises:
            TfswaError: As in `separate`, when the block in question is reached.
        """
        # A whole batch on a GPU could be over a minute of a live recording.
        return self._stream(blocks, rate, stems=stems, batch_size=self._runtime.batch_size or 1)

    def live(
        self,
        latency: str = "normal",
        *,
        stems: str | Sequence[str] | None = None,
        window: float | None = None,
        hop: float | None = None,
        lookahead: float | None = None,
    ) -> LiveStream:
        """Separate sound as it arrives, with a constant delay of `hop + lookahead`; see LiveStream.push.

        Args:
            latency: "low", "normal" or "high": the times that are not given.
            stems: See OutputOptions; None for all.
            window: Seconds; see LiveTiming.
            hop: Seconds.
            lookahead: Seconds.

        Raises:
            UsageError: The times do not fit together, a stem or the latency is unknown, or the model is an ensemble.
        """
        if latency not in LATENCIES:
            raise UsageError(f"unknown latency '{latency}': choose from {', '.join(LATENCIES)}")
        given = {"window": window, "hop": hop, "lookahead": lookahead}
        chosen = {name: value for name, value in given.items() if value is not None}
        timing = replace(LATENCIES[latency], **chosen)
        model = self.network
        names, stem_matrix = parse_stems(stems, model.stems)
        return LiveStream(model, names, stem_matrix, timing)

    def _stream(
        self,
        blocks: Iterable[NDArray[np.floating]],
        rate: int,
        *,
        stems: str | Sequence[str] | None,
        batch_size: int | None,
    ) -> Iterator[Stems]:
        model = self.backend
        names, _ = parse_stems(stems, model.stems)
        return _stream_stems(model, blocks, rate, names, batch_size=batch_size, shifts=self._runtime.shifts)

    def save(
        self,
        stems: Stems,
        folder: str | Path,
        *,
        audio_format: str = "wav",
        bit_depth: str | None = None,
        bitrate: int | None = None,
        rescale: bool = False,
        overwrite: bool = True,
    ) -> dict[str, Path]:
        """Write stems to `folder/<stem>.<extension>`, all of them or none; see OutputOptions for the options.

        Samples that the format cannot hold are clipped, with a UserWarning.

        Returns:
            Stem -> file.

        Raises:
            InputError: The stems differ in shape, have unusable names, or contain NaN or infinite samples.
            UsageError: The options do not fit together.
            OutputError: A file cannot be written; nothing is left behind.
        """
        if not isinstance(stems, Stems):
            raise UsageError("the sample rate is not known: pass Stems(stems, sample_rate=...)")
        written = write_stems(
            stems,
            stems.sample_rate,
            Path(folder),
            audio_format=find_format(audio_format, bit_depth, bitrate),
            rescale=rescale,
            overwrite=overwrite,
        )
        if clipped := describe_clipping(written):
            warnings.warn(f"{clipped}: use bit_depth='32f' or rescale=True to keep them", stacklevel=2)
        return written.files

    def separate_file(
        self,
        path: str | Path,
        options: OutputOptions = OutputOptions(),
        *,
        track_name: str | None = None,
        keep: Collection[str] = (),
        record: Record | None = None,
        on_start: Callable[[Mapping[str, Path]], None] | None = None,
        on_progress: Progress | None = None,
        **choices: Unpack[OutputChoices],
    ) -> SeparationResult:
        """Separate a song into files with its own sample rate, channels and length, all of them or none.

        Args:
            path: The song.
            options: See OutputOptions.
            track_name: Name of the song in its stems' paths; None for its file's name.
            keep: Real paths of files that must never be replaced, such as the other songs of a batch.
            record: Files that it owns are replaced even without `overwrite`.
            on_start: See pipeline.separate_song.
            on_progress: Called after each block, in this thread, with the seconds done and the total.
            **choices: Fields of OutputOptions, such as out="stems", that override those of `options`.

        Raises:
            TfswaError: InputError, UsageError, ModelError, DeviceError or OutputError; nothing is left behind.
        """
        model = self.backend
        return separate_song(
            path,
            model,
            override(options, choices),
            model_name=self._name,
            track_name=track_name,
            keep=keep,
            record=record,
            batch_size=self._runtime.batch_size,
            shifts=self._runtime.shifts,
            on_start=on_start,
            on_progress=on_progress,
        )


def separate(
    path: str | Path,
    *,
    model: str | Path | registry.ModelInfo | Backend | Separator | None = None,
    track_name: str | None = None,
    keep: Collection[str] = (),
    on_progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> SeparationResult:
    """Separate one song into files.

    For several songs, pass a Separator as the model, so that it is loaded only once.

    Args:
        path: The song.
        model: A loaded Separator, or what Separator takes.
        track_name: Name of the song in its stems' paths; None for its file's name.
        keep: Real paths of files that must never be replaced.
        on_progress: Called after each block, in this thread, with the seconds done and the total.
        **choices: Fields of Runtime and of OutputOptions, such as threads=4, out="stems".

    Raises:
        TfswaError: InputError, UsageError, ModelError, DeviceError or OutputError; nothing is left behind.
    """
    output = dict(choices)
    runtime = take_fields(Runtime, output)
    if not isinstance(model, Separator):
        model = Separator(model, **runtime)
    elif runtime:
        raise UsageError(f"the model is loaded: pass {', '.join(runtime)} to its Separator")
    options = override(OutputOptions(), output)
    return model.separate_file(path, options, track_name=track_name, keep=keep, on_progress=on_progress)


def load_model(
    model: str | Path | registry.ModelInfo | None = None, **choices: Unpack[RuntimeChoices]
) -> Backend:
    """The loaded network itself: segments (b, c, n) to stems (b, s, c, n); see inference.backend.Backend.

    Args:
        model: See Separator.
        **choices: Fields of Runtime.

    Raises:
        UsageError: The model is an ensemble, whose networks see different segments.
    """
    return Separator(model, **choices).network


def _load_model(info: registry.ModelInfo, runtime: Runtime) -> Backend:
    """Load a model on the fastest available backend, or on the requested one."""
    offered = [file.backend for file in info.files]
    chosen = choose_backend(offered, runtime)
    try:
        return _load_file(info, chosen, runtime)
    except DeviceError as error:
        if not can_fall_back(offered, runtime, chosen):
            raise
        why = str(error).rpartition(":")[0]  # without the advice
    return _load_file(info, "onnx", replace(runtime, device="cpu"), notes=[f"{why}, so the CPU was used"])


def _load_file(
    info: registry.ModelInfo, backend: str, runtime: Runtime, *, notes: Sequence[str] = ()
) -> Backend:
    kind = kind_of_file(backend)
    files = registry.files_for(info, kind)
    paths = registry.fetch_all(info, kind)  # before heavy imports: a damaged file fails at once
    settings = {**info.settings, **runtime.settings}
    load = [
        partial(
            load_backend,
            backend,
            path,
            runtime,
            precision=file.precision,
            settings=settings,
            notes=notes,
            cache=registry.cache_folder() / backend if file.sha256 or backend == "openvino" else None,
            takes_turns=len(files) > 1,
        )
        for file, path in zip(files, paths, strict=True)
    ]
    if not files[0].weights:
        return load[0]()
    return Bag(load, np.array([file.weights for file in files], np.float32))


def _as_floats(samples: NDArray[np.floating]) -> Samples:
    """Samples as float32. Raises InputError for integers, whose full scale is different, and for complex numbers."""
    array = np.asarray(samples)
    if not np.issubdtype(array.dtype, np.floating):
        hint = ": divide 16-bit samples by 32768" if np.issubdtype(array.dtype, np.integer) else ""
        raise InputError(f"expected samples at full scale +-1, got {array.dtype}{hint}")
    return np.asarray(array, dtype=np.float32)


def _shape(samples: NDArray[np.floating]) -> str:
    """A wrong shape, with the advice for the usual mistake: soundfile's arrays are (n, c)."""
    shape = np.shape(samples)
    return f"{shape}: transpose it" if len(shape) == 2 and shape[1] in (1, 2) else f"{shape}"


def _stream_stems(
    model: Backend | Ensemble,
    blocks: Iterable[NDArray[np.floating]],
    rate: int,
    names: Sequence[str],
    *,
    batch_size: int | None,
    shifts: int,
) -> Iterator[Stems]:
    """Blocks (c, n) at `rate` in Hz to blocks of the stems `names`, each (c, m): see Separator.stream."""
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise InputError(f"{rate} Hz is not a supported sample rate")
    incoming = (_as_floats(block) for block in blocks)
    first = next(incoming, None)
    if first is None or first.ndim != 2 or len(first) not in (1, 2):
        found = None if first is None else first.shape
        raise InputError(f"expected blocks of shape (1 or 2 channels, n), got {found}")
    channels = len(first)
    taken = 0  # samples at `rate`

    def checked() -> Iterator[Samples]:
        nonlocal taken
        for block in chain([first], incoming):
            if block.ndim != 2 or len(block) != channels:
                raise InputError(f"expected a block of {channels} channels, got shape {block.shape}")
            if block.size and not np.abs(block).max() <= MAX_PEAK:  # False for NaN too
                raise InputError("the samples are not finite or far outside full scale")
            taken += block.shape[1]
            yield block

    song, whole = checked(), None
    shares = shares_of_rest(parse_stems(names, model.stems)[1], model.stems)
    if rate != model.sample_rate and shares.any():
        song, whole = tee(song)
    wide = (np.repeat(block, MODEL_CHANNELS // channels, axis=0) for block in song)
    margin, _ = margins(rate, model.sample_rate)
    separated = separate_to_rate(
        model,
        convert(extend(wide, margin), rate, model.sample_rate),
        names,
        rates=(rate, rate),
        frames=lambda: taken,
        channels=channels,
        whole=whole,
        shares=shares,
        batch_size=batch_size,
        shifts=shifts,
    )
    for stems in separated:
        yield Stems(dict(zip(names, stems, strict=True)), sample_rate=rate)


def _join_stems(parts: Sequence[Stems], shape: tuple[int, ...]) -> Stems:
    """Concatenate blocks of stems; each stem gets `shape`."""
    names, rate = list(parts[0]), parts[0].sample_rate
    joined = {name: np.concatenate([part[name] for part in parts], axis=1).reshape(shape) for name in names}
    return Stems(joined, sample_rate=rate)
