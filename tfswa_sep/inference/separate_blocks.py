"""Separate a whole song: blocks of any length in, blocks of stems out.

Axis letters: b batch, s model stem, k requested stem, c channel, n samples.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise, tee
from random import Random

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.backend import Backend
from tfswa_sep.inference.ensemble import Ensemble, parts_for
from tfswa_sep.inference.overlap_add import Samples, overlap_add


def separate_blocks(
    model: Backend | Ensemble,
    blocks: Iterable[Samples],
    names: Sequence[str],
    *,
    mono: bool = False,
    batch_size: int | None = None,
    shifts: int = 1,
) -> Iterator[Samples]:
    """Separate a stream of blocks; memory does not grow with its length.

    Args:
        model: The loaded model or models.
        blocks: (c, n) each, of any n, at the model's rate and with its channels.
        names: The k requested stems, as `parse_stems` returns them for the model.
        mono: Both channels are copies of a mono song, so the stems are mono too.
        batch_size: Segments per call; None for the device's best.
        shifts: Passes over the song, each with its segments at another offset; the stems are their mean.

    Yields:
        (k, c, n), as many samples in total as came in.

    Raises:
        ModelError: The network fails, or returns NaN or infinite values.
        DeviceError: Out of memory.
    """
    parts = parts_for(model, names)
    count = len(parts) * shifts
    # A single pass avoids tee, which keeps some 60 blocks that every copy has already read.
    copies = iter([iter(blocks)] if count == 1 else tee(blocks, count))
    passes = [
        one
        for network, matrix in parts
        for one in _passes(network, islice(copies, shifts), matrix, batch_size=batch_size)
    ]
    for block in passes[0] if count == 1 else _sum(passes, scale=1 / shifts):
        if not np.isfinite(block.sum()):
            raise ModelError(f"the network returned NaN or infinite values: {_other_ways(model)}")
        yield block.mean(axis=1, keepdims=True) if mono else block


def _passes(
    model: Backend,
    copies: Iterable[Iterator[Samples]],
    stem_matrix: NDArray[np.float32],
    *,
    batch_size: int | None,
) -> list[Iterator[Samples]]:
    """The stems (k, c, n) of a model for each copy of the song, each with its segments at another offset.

    `stem_matrix` (k, s + 1) has the requested stems as sums of the model's and, in the last column, the song.
    """
    plan = model.plan
    model_part, song_part = stem_matrix[:, :-1], stem_matrix[:, -1]
    is_identity = np.array_equal(model_part, np.eye(len(model.stems)))
    size = batch_size or model.batch_size
    workers = max(1, model.workers // size)  # each computes `size` segments at once
    device = threading.Semaphore(workers)  # shared by the passes, each of which has its own threads

    def separate(segments: Samples) -> Samples:
        if not segments.any():  # the stems of silence are silent, whatever the network's biases
            return np.zeros((len(segments), len(stem_matrix), *segments.shape[1:]), np.float32)
        with device:
            stems = model(segments, stem_matrix=None if is_identity else model_part)
        return stems + song_part[:, None, None] * segments[:, None] if song_part.any() else stems

    copies = list(copies)
    offsets = [plan.lead + offset for offset in _offsets(len(copies), plan.step)]
    return [
        _drop(overlap_add(_delay(copy, offset), separate, plan, batch_size=size, workers=workers), offset)
        for copy, offset in zip(copies, offsets, strict=True)
    ]


def _other_ways(model: Backend | Ensemble) -> str:
    """What to try if this backend fails."""
    ways = ["--device cpu"] if model.device != "cpu" else []
    ways += ["--precision fp32"] if model.precision not in ("", "fp32") else []
    ways += ["--backend onnx"] if model.name in ("torch", "openvino") else []
    return f"try {' or '.join(ways)}" if ways else "choose another model with --model"


def _offsets(shifts: int, step: int) -> list[int]:
    """The delay of each pass in samples: none, then a random one from each of `shifts - 1` equal parts of `step`.

    The same for every song, so that a run can be repeated bit for bit.
    """
    rng = Random(0)  # numpy.random would be imported here, and an import by Cython can swallow Ctrl-C
    bounds = [step * i // shifts for i in range(shifts + 1)]
    return [0, *(rng.randrange(low, high) for low, high in pairwise(bounds[1:]))]


def _delay(blocks: Iterator[Samples], samples: int) -> Iterator[Samples]:
    """The stream (c, n) after `samples` of silence; an empty stream stays empty."""
    first = next(blocks, None)
    if first is not None:
        yield np.zeros((len(first), samples), np.float32)
        yield from chain([first], blocks)


def _drop(blocks: Iterable[Samples], samples: int) -> Iterator[Samples]:
    """The stream (..., n) without its first `samples`."""
    for block in blocks:
        skipped = min(samples, block.shape[-1])
        samples -= skipped
        if skipped < block.shape[-1]:
            yield block[..., skipped:]


def _sum(streams: Sequence[Iterator[Samples]], *, scale: float) -> Iterator[Samples]:
    """The scaled sum of streams (..., n) of the same total length but different block lengths."""
    held: list[Samples | None] = [None] * len(streams)
    while True:
        for i, stream in enumerate(streams):
            if held[i] is None:
                held[i] = next(stream, None)
        blocks = [block for block in held if block is not None]
        if len(blocks) < len(streams):
            return
        n = min(block.shape[-1] for block in blocks)
        total: Samples = np.sum([block[..., :n] for block in blocks], axis=0, dtype=np.float32)
        total *= scale
        yield total
        held = [block[..., n:] if block.shape[-1] > n else None for block in blocks]
