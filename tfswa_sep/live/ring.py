"""A ring buffer with absolute positions, for one writer and one reader that never wait for each other."""

from __future__ import annotations

import numpy as np

from tfswa_sep.inference.overlap_add import Samples


class Ring:
    """The last `capacity` samples of a stream, (n, channels) as sound cards have them.

    The writer copies samples and then raises `written`, so a reader in another thread sees only whole ones.
    """

    def __init__(self, channels: int, capacity: int) -> None:
        self._samples = np.zeros((capacity, channels), np.float32)
        self.capacity = capacity
        self.written = 0  # samples so far

    def write(self, block: Samples) -> None:
        """Append a block (n, channels), or (n, 1) for all channels; of a longer one, only its end is kept."""
        skipped = max(0, len(block) - self.capacity)
        block, position = block[skipped:], self.written + skipped
        start = position % self.capacity
        first = min(len(block), self.capacity - start)
        self._samples[start : start + first] = block[:first]
        self._samples[: len(block) - first] = block[first:]
        self.written = position + len(block)

    def read(self, position: int, out: Samples) -> None:
        """Copy the samples from `position` on to `out` (n, channels), with zeros for those it does not have."""
        begin = max(position, self.written - self.capacity, 0)
        end = min(position + len(out), self.written)
        if end <= begin:
            out[:] = 0
            return
        out[: begin - position] = 0
        out[end - position :] = 0
        start = begin % self.capacity
        first = min(end - begin, self.capacity - start)
        out[begin - position : begin - position + first] = self._samples[start : start + first]
        out[begin - position + first : end - position] = self._samples[: end - begin - first]
