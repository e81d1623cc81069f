"""Read a stream of blocks in blocks of other lengths. Axis letters: c channel, n samples."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tfswa_sep.audio.resample import Samples, fit_length


class BlockReader:
    """Reads a stream of (c, n) blocks; after its end it returns silence."""

    def __init__(self, blocks: Iterable[Samples], channels: int) -> None:
        self.frames = 0  # received so far; the stream's length once it has ended
        self.ended = False
        self._blocks = iter(blocks)
        self._held: Samples = np.zeros((channels, 0), np.float32)

    def read(self, frames: int) -> Samples:
        """The next (c, frames) samples."""
        parts, length = [self._held], self._held.shape[1]
        while length < frames and not self.ended:
            block = next(self._blocks, None)
            if block is None:
                self.ended = True
            else:
                parts.append(block)
                length += block.shape[1]
                self.frames += block.shape[1]
        joined = np.concatenate(parts, axis=1)
        self._held = joined[:, frames:]
        return fit_length(joined, frames)
