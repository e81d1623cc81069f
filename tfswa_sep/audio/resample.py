"""Resample with soxr, as a stream. Axis letters: c channel, n samples.

A resampler takes the silence around a song for part of it, and rounds off a song that starts or ends in full sound. So
a song is continued at both ends by linear prediction, and what is made of that is cut off.
Burg's method: S. L. Marple, "Digital Spectral Analysis", 1987, chapter 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_FILTER_REACH = 128  # samples, at the lower rate, that soxr's HQ filter extends to either side
_LEARNED = 1024  # samples from which a prediction is learned
_ORDER = 32  # samples that a prediction is made of
_LONGEST = 4096  # samples that are predicted; the prediction fades, and silence follows
_ROUNDING = 16  # samples by which a stream of resamplers may be longer or shorter


def interleave(samples: NDArray[Any]) -> NDArray[Any]:
    """(c, n) to (n, c) in memory, as libsndfile and soxr want it; ten times faster than copying samples.T."""
    return np.stack(list(samples), axis=1)


def fit_length(samples: Samples, frames: int) -> Samples:
    """(c, n) truncated, or padded with zeros, to (c, frames)."""
    return np.pad(samples[:, :frames], ((0, 0), (0, max(0, frames - samples.shape[1]))))


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

    def flush(self) -> Samples:
        """The rest."""
        if self._stream is None:
            return np.zeros((self._channels, 0), np.float32)
        silent = np.zeros((0, self._channels), np.float32)
        return np.ascontiguousarray(self._stream.resample_chunk(silent, last=True).T)


def resample(blocks: Iterable[Samples], rate_in: int, rate_out: int) -> Iterator[Samples]:
    """Resample a song of (c, n) blocks to a stream of the same duration."""
    taken = 0

    def counted() -> Iterator[Samples]:
        nonlocal taken
        for block in blocks:
            taken += block.shape[1]
            yield block

    if rate_in == rate_out:
        yield from blocks
        return
    before, after = margins(rate_in, rate_out)
    longer = convert(extend(counted(), before), rate_in, rate_out)
    yield from trim(longer, after, lambda: frames_at(taken, rate_in, rate_out))


def frames_at(frames: int, rate: int, wanted: int) -> int:
    """The length at one rate of a song of `frames` samples at another."""
    return frames if rate == wanted else max(1, round(frames * wanted / rate))


def margins(*rates: int) -> tuple[int, ...]:
    """How far to continue a song, in samples at each of the rates; 0 if they are equal."""
    if len(set(rates)) == 1:
        return (0,) * len(rates)
    unit = math.gcd(*rates)
    times = math.ceil(_FILTER_REACH * unit / min(rates))
    return tuple(times * rate // unit for rate in rates)


def convert(blocks: Iterable[Samples], rate_in: int, rate_out: int) -> Iterator[Samples]:
    """Resample a stream of (c, n) blocks as it is; n may be 0 in what is yielded."""
    resampler: Resampler | None = None
    for block in blocks:
        resampler = resampler or Resampler(rate_in, rate_out, len(block))
        yield resampler.push(block)
    if resampler:
        yield resampler.flush()


def trim(blocks: Iterable[Samples], margin: int, frames: Callable[[], int]) -> Iterator[Samples]:
    """Cut what `extend` has added off a stream of (c, n) blocks.

    Args:
        blocks: The stream.
        margin: Samples to cut off at each end.
        frames: The length that remains; called at the end.
    """
    given, skipped = 0, 0
    held: Samples | None = None
    for block in blocks:
        lead = min(margin - skipped, block.shape[1])
        skipped += lead
        held = block[:, lead:] if held is None else np.concatenate([held, block[:, lead:]], axis=1)
        if (ready := held.shape[1] - margin - _ROUNDING if margin else held.shape[1]) > 0:
            yield held[:, :ready]
            given += ready
            held = held[:, ready:]
    if held is not None:
        yield fit_length(held, frames() - given)


def extend(blocks: Iterable[Samples], margin: int) -> Iterator[Samples]:
    """Continue a stream of (c, n) blocks by `margin` samples before its start and after its end."""
    begun = not margin
    start: list[Samples] = []
    end: Samples | None = None
    for block in blocks:
        if begun:
            yield block
        else:
            start.append(block)
            if not (begun := sum(part.shape[1] for part in start) >= _LEARNED):
                continue
            block = np.concatenate(start, axis=1)
            yield _predict(block[:, ::-1], margin)[:, ::-1]
            yield block
        end = block if end is None else np.concatenate([end, block[:, -_LEARNED:]], axis=1)
        end = end[:, -_LEARNED:].copy()
    if not begun and start:
        end = np.concatenate(start, axis=1)
        yield _predict(end[:, ::-1], margin)[:, ::-1]
        yield end
    if margin and end is not None:
        yield _predict(end, margin)


def _predict(samples: Samples, count: int) -> Samples:
    """The next `count` samples after (c, n) ones."""
    predicted = np.zeros((len(samples), count), np.float32)
    for samples_there, target in zip(samples[:, -_LEARNED:].astype(np.float64), predicted, strict=True):
        weights = -_burg(samples_there)[:0:-1]
        order, length = len(weights), min(count, _LONGEST)
        line = np.concatenate([samples_there[len(samples_there) - order :], np.zeros(length)])
        for at in range(order, order + length):
            line[at] = weights @ line[at - order : at]
        target[:length] = line[order:]
    return predicted


def _burg(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The coefficients, beginning with 1, of the filter that leaves the least of the samples; never unstable."""
    filtered = np.ones(1)
    forward = backward = samples
    for _ in range(min(_ORDER, len(samples) // 2)):
        forward, backward = forward[1:], backward[:-1]
        power = forward @ forward + backward @ backward
        if power <= 1e-20 * len(samples):
            break
        reflection = -2 * (forward @ backward) / power
        filtered = np.append(filtered, 0)
        filtered = filtered + reflection * filtered[::-1]
        forward, backward = forward + reflection * backward, backward + reflection * forward
    return filtered
