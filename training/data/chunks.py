"""Training examples from decoded songs: chunks in which at least one stem is active."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import SAMPLE_RATE
from training.data.cache import ACTIVITY_BLOCK, CachedTrack
from training.data.tracks import to_float

Floats = NDArray[np.float32]


class SongChunks:
    """Draws chunks of songs, in proportion to song length; all stems of a chunk are cut at the same position.

    A share `anywhere` of the chunks is cut anywhere and may be silent. In each of the others, one stem drawn at
    random is active at a random position, so that rare stems are drawn as often as those that never pause.
    Raises ValueError if a song is shorter than a chunk.
    """

    def __init__(
        self, tracks: Sequence[CachedTrack], *, seconds: float, seed: int = 0, anywhere: float = 0.1
    ) -> None:
        self.seed, self.anywhere = seed, anywhere
        self.length = round(seconds * SAMPLE_RATE)
        self._tracks = [(track, track.samples) for track in tracks]
        for track, samples in self._tracks:
            if len(samples) < self.length:
                raise ValueError(f"{track.name} is shorter than data.seconds ({seconds:g} s): remove it")
        lengths = np.array([len(samples) for _, samples in self._tracks], np.float64)
        self._shares = lengths / lengths.sum()

    def example(self, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
        """One mixture (c, n), its stems (s, c, n), and which of them are known (s,).

        A stem without a file is unknown: the song may lack it, or another stem may contain it.
        """
        track, samples = self._tracks[int(rng.choice(len(self._tracks), p=self._shares))]
        last = len(samples) - self.length
        start = int(rng.integers(last + 1))
        if rng.random() >= self.anywhere:
            stems = np.flatnonzero(track.active.any(axis=0))
            if len(stems):
                block = int(rng.choice(np.flatnonzero(track.active[:, rng.choice(stems)])))
                offset = int(rng.integers(self.length))  # of the block's middle in the chunk
                start = min(max(block * ACTIVITY_BLOCK + ACTIVITY_BLOCK // 2 - offset, 0), last)
        waves = to_float(samples[start : start + self.length])
        return waves.sum(axis=0), waves, np.array(track.known, np.float32)
