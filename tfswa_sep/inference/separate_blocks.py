"""A model over a whole song: blocks of any length in, blocks of stems out.

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise, tee

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.backend import Backend
from tfswa_sep.inference.overlap_add import Samples, overlap_add, plan_segments


def separate_blocks(
    model: Backend,
    blocks: Iterable[Samples],
    stem_matrix: NDArray[np.float32],
    *,
    mono: bool = False,
    batch_size: int | None = None,
    shifts: int = 1,
) -> Iterator[Samples]:
    """Separate a stream of blocks; only a few segments are in memory, however long it is.

    Args:
        model: The loaded model.
        blocks: (c, n) each, of any n, at the model's rate and with its channels.
        stem_matrix: (k, s + 1), the stems asked for as sums of the model's and, in the last column, the song.
        mono: Both channels are copies of a mono song, so the stems get one channel too.
        batch_size: Segments per call; None for as many as suit the device best.
        shifts: Passes, each with its segments elsewhere, whose mean the stems are.

    Yields:
        (k, c, n), in all as many samples as came in.

    Raises:
        ModelError: The network fails, or gives numbers that are not finite.
        DeviceError: Memory runs out.
    """
    plan = plan_segments(segment=model.segment_samples, margin=model.margin_samples)
    of_stems, of_song = stem_matrix[:, :-1], stem_matrix[:, -1]
    is_identity = np.array_equal(of_stems, np.eye(len(model.stems)))  # then there is nothing to sum

    def separate(segments: Samples) -> Samples:
        if not segments.any():  # silence has silent stems, whatever a network's biases say, and costs nothing
            return np.zeros((len(segments), len(stem_matrix), *segments.shape[1:]), np.float32)
        stems = model(segments, stem_matrix=None if is_identity else of_stems)
        return stems + of_song[:, None, None] * segments[:, None] if of_song.any() else stems

    size = batch_size or model.batch_size
    workers = max(1, model.workers // size)  # each computes `size` segments at once
    at_once = threading.Semaphore(workers)  # passes read ahead side by side, but share the device

    def separate_in_turn(segments: Samples) -> Samples:
        with at_once:
            return separate(segments)

    process = separate if shifts == 1 else separate_in_turn
    # tee keeps some 60 blocks, also those that every copy has read: a single pass does without
    copies = [iter(blocks)] if shifts == 1 else tee(blocks, shifts)
    passes = [
        _dropped(overlap_add(_delayed(copy, offset), process, plan, batch_size=size, workers=workers), offset)
        for copy, offset in zip(copies, _offsets(shifts, plan.step), strict=True)
    ]
    for block in passes[0] if shifts == 1 else _mean(passes):
        if not np.isfinite(block.sum()):
            raise ModelError(f"the network returned NaN or infinite values: {_other_ways(model)}")
        yield block.mean(axis=1, keepdims=True) if mono else block


def _other_ways(model: Backend) -> str:
    """What to try where this backend fails."""
    ways = ["--device cpu"] if model.device != "cpu" else []
    ways += ["--precision fp32"] if model.precision not in ("", "fp32") else []
    ways += ["--backend onnx"] if model.name == "torch" else []
    return f"try {' or '.join(ways)}" if ways else "choose another model with --model"


def _offsets(shifts: int, step: int) -> list[int]:
    """By how many samples each pass is late: none for the first, then one at random from each part of `step`.

    The same for every song, so that a run can be repeated to the bit.
    """
    rng = np.random.default_rng(0)
    bounds = [step * i // shifts for i in range(shifts + 1)]
    return [0, *(int(rng.integers(low, high)) for low, high in pairwise(bounds[1:]))]


def _delayed(blocks: Iterator[Samples], samples: int) -> Iterator[Samples]:
    """The stream (c, n) behind `samples` of silence; nothing before an empty one."""
    first = next(blocks, None)
    if first is not None:
        yield np.zeros((len(first), samples), np.float32)
        yield from chain([first], blocks)


def _dropped(blocks: Iterable[Samples], samples: int) -> Iterator[Samples]:
    """The stream (..., n) without its first `samples`."""
    for block in blocks:
        skipped = min(samples, block.shape[-1])
        samples -= skipped
        if skipped < block.shape[-1]:
            yield block[..., skipped:]


def _mean(streams: Sequence[Iterator[Samples]]) -> Iterator[Samples]:
    """The mean of streams (..., n) of one length in all, cut into blocks of different lengths."""
    held: list[Samples | None] = [None] * len(streams)
    while True:
        for i, stream in enumerate(streams):
            if held[i] is None:
                held[i] = next(stream, None)
        blocks = [block for block in held if block is not None]
        if len(blocks) < len(streams):
            return
        n = min(block.shape[-1] for block in blocks)
        yield np.mean([block[..., :n] for block in blocks], axis=0, dtype=np.float32)
        held = [block[..., n:] if block.shape[-1] > n else None for block in blocks]
