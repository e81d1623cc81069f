"""A model over a whole song: blocks of any length in, blocks of stems out.

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
) -> Iterator[Samples]:
    """Separate a stream of blocks; only a few segments are in memory, however long it is.

    Args:
        model: The loaded model.
        blocks: (c, n) each, of any n, at the model's rate and with its channels.
        stem_matrix: (k, s), the stems asked for as sums of the model's.
        mono: Both channels are copies of a mono song, so the stems get one channel too.
        batch_size: Segments per call; None for as many as suit the device best.

    Yields:
        (k, c, n), in all as many samples as came in.

    Raises:
        ModelError: The network fails, or gives numbers that are not finite.
        DeviceError: Memory runs out.
    """
    plan = plan_segments(segment=model.segment_samples, margin=model.margin_samples)
    is_identity = np.array_equal(stem_matrix, np.eye(len(model.stems)))  # then there is nothing to sum

    def separate(segments: Samples) -> Samples:
        if not segments.any():  # silence has silent stems, whatever a network's biases say, and costs nothing
            return np.zeros((len(segments), len(stem_matrix), *segments.shape[1:]), np.float32)
        return model(segments, stem_matrix=None if is_identity else stem_matrix)

    size = batch_size or model.batch_size
    workers = max(1, model.workers // size)  # each computes `size` segments at once
    for block in overlap_add(blocks, separate, plan, batch_size=size, workers=workers):
        if not np.isfinite(block.sum()):
            raise ModelError(
                "the network gave numbers that are not finite: try --backend onnx or --device cpu"
            )
        yield block.mean(axis=1, keepdims=True) if mono else block
