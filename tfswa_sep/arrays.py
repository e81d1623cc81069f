"""Stems as arrays in memory: out of a stream of blocks, joined, and into files.

Axis letters: s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio.decode import BLOCK, LOUDEST, RATES
from tfswa_sep.audio.formats import find_format
from tfswa_sep.audio.resample import Samples, resample
from tfswa_sep.audio.stem_writer import StemWriter
from tfswa_sep.errors import InputError

MODEL_CHANNELS = 2  # of every model (backends/metadata.py)


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


def as_floats(samples: NDArray[np.floating]) -> Samples:
    """Samples in float32. Raises InputError for integers, whose full scale is another."""
    found = np.asarray(samples)
    if np.issubdtype(found.dtype, np.integer):
        raise InputError(f"expected samples at full scale +-1, got {found.dtype}: divide 16 bits by 32768")
    return np.asarray(found, dtype=np.float32)


def stream_stems(
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
    incoming = (as_floats(block) for block in blocks)
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


def join_stems(parts: Sequence[Stems], shape: tuple[int, ...]) -> Stems:
    """Blocks of stems, one behind the other, each stem in `shape`."""
    names, rate = list(parts[0]), parts[0].sample_rate
    joined = {name: np.concatenate([part[name] for part in parts], axis=1).reshape(shape) for name in names}
    return Stems(joined, sample_rate=rate)


def save_stems(
    stems: Stems,
    folder: Path,
    *,
    audio_format: str = "wav",
    bit_depth: str | None = None,
    rescale: bool = False,
    overwrite: bool = True,
) -> dict[str, Path]:
    """Write stems to `folder`/<stem>.<extension>, all of them or none; returns the files.

    options: see SaveOptions.
    Raises InputError for stems that cannot be files side by side, UsageError for options that do not fit,
    OutputError; then nothing is left behind.
    """
    encoding = find_format(audio_format, bit_depth)
    if len({np.shape(samples) for samples in stems.values()}) != 1:
        raise InputError("expected stems, all of one shape")
    if odd := [name for name in stems if Path(name).name != name]:
        raise InputError(f"a stem cannot be called {odd[0]!r}: that is no file's name")
    parts = np.stack([np.atleast_2d(samples) for samples in stems.values()])  # (k, c, n)
    if not np.isfinite(parts).all():
        raise InputError("the stems hold numbers that are not finite")
    frames = parts.shape[-1]
    rate = encoding.nearest_rate(stems.sample_rate)
    frames_there = frames if rate == stems.sample_rate else round(frames * rate / stems.sample_rate)
    with StemWriter(
        {name: folder / f"{name}{encoding.extension}" for name in stems},
        audio_format=encoding,
        rate=rate,
        model_rate=stems.sample_rate,
        channels=parts.shape[1],
        frames=frames_there,
        rescale=rescale,
        overwrite=overwrite,
    ) as writer:
        for start in range(0, frames, BLOCK):
            writer.write(parts[..., start : start + BLOCK])
        return writer.commit(frames_there).files
