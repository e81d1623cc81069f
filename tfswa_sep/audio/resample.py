"""Resample with soxr, as a stream. Axis letters: c channel, n samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]


def interleave(samples: NDArray[Any]) -> NDArray[Any]:
    """(c, n) to (n, c) in memory, as libsndfile and soxr want it; ten times faster than copying samples.T."""
    return np.stack(list(samples), axis=1)


class Resampler:
    """soxr at its HQ quality as a stream of (c, n) blocks; passes blocks through if the rates are equal."""

    def __init__(self, rate_in: int, rate_out: int, channels: int) -> None:
        self._channels = channels
        self._stream = None
        if rate_in != rate_out:
            self._stream = soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32", quality="HQ")

    def push(self, block: Samples) -> Samples:
        """The samples that `block` completes: (c, n) to (c, m)."""
        if self._stream is None:
            return block
        return np.ascontiguousarray(self._stream.resample_chunk(interleave(block)).T)

    def flush(self, silence: int = 0) -> Samples:
        """The rest, after `silence` zeros more of input."""
        if self._stream is None:
            return np.zeros((self._channels, 0), np.float32)
        silent = np.zeros((silence, self._channels), np.float32)
        return np.ascontiguousarray(self._stream.resample_chunk(silent, last=True).T)


def resample(blocks: Iterable[Samples], rate_in: int, rate_out: int) -> Iterator[Samples]:
    """Resample a stream of (c, n) blocks; n may be 0 in what is yielded."""
    resampler: Resampler | None = None
    for block in blocks:
        resampler = resampler or Resampler(rate_in, rate_out, len(block))
        yield resampler.push(block)
    if resampler:
        yield resampler.flush()
