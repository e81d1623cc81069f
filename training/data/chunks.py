"""Training examples from decoded songs: chunks in which something sounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.cache import ACTIVITY_BLOCK, CachedTrack
from training.data.tracks import SAMPLE_RATE

Floats = NDArray[np.float32]


class SongChunks:
    """Draws chunks of songs, long songs more often; all stems of a chunk come from one moment.

    A share `anywhere` of the chunks may be silent. In the others one of the stems, drawn at random, sounds at
    a random place: what a song has only once is met as often as what it always has.
    Raises ValueError for a song that is shorter than a chunk.
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

        A stem without a file is not known: the song may lack it, or hold it in another stem.
        """
        track, samples = self._tracks[int(rng.choice(len(self._tracks), p=self._shares))]
        last = len(samples) - self.length
        start = int(rng.integers(last + 1))
        if rng.random() >= self.anywhere:
            stems = np.flatnonzero(track.active.any(axis=0))
            if len(stems):
                block = int(rng.choice(np.flatnonzero(track.active[:, rng.choice(stems)])))
                place = int(rng.integers(self.length))  # in the chunk, of the middle of what sounds
                start = min(max(block * ACTIVITY_BLOCK + ACTIVITY_BLOCK // 2 - place, 0), last)
        chunk = samples[start : start + self.length].astype(np.float32) / np.float32(32_768)
        waves = np.ascontiguousarray(chunk.transpose(1, 2, 0))
        return waves.sum(axis=0), waves, np.array(track.known, np.float32)
