"""Training examples from decoded songs: chunks in which at least one stem is active."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.errors import InputError
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
        self._shares = _shares(samples for _, samples in self._tracks)

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
                start = _draw_start(track.active[:, rng.choice(stems)], self.length, last, rng)
        waves = to_float(samples[start : start + self.length])
        return waves.sum(axis=0), waves, np.array(track.known, np.float32)


class StemMixes:
    """Mixes chunks of unrelated songs: each stem comes from a song and a position of its own.

    Songs are drawn in proportion to their length, per stem. A share `anywhere` of the chunks of a stem is cut anywhere;
    the others contain it. Recordings that are shorter than a chunk are followed by silence. Raises InputError if no
    song has sound in one of the `stems`.
    """

    def __init__(
        self,
        tracks: Sequence[CachedTrack],
        stems: Sequence[str],
        *,
        seconds: float,
        seed: int = 0,
        anywhere: float = 0.1,
    ) -> None:
        self.seed, self.anywhere = seed, anywhere
        self.length = round(seconds * SAMPLE_RATE)
        self._recordings: list[list[tuple[NDArray[np.bool_], NDArray[np.int16]]]] = []
        for stem in stems:
            columns = [(track, track.stems.index(stem)) for track in tracks if stem in track.stems]
            recordings = [
                (track.active[:, i], track.samples[:, i : i + 1])
                for track, i in columns
                if track.active[:, i].any()
            ]
            if not recordings:
                raise InputError(f"no recording of {stem!r} contains any sound")
            self._recordings.append(recordings)
        self._shares = [_shares(samples for _, samples in recordings) for recordings in self._recordings]

    def example(self, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
        """One mixture (c, n), its stems (s, c, n), and ones (s,): every stem is known."""
        waves = np.zeros((len(self._recordings), 2, self.length), np.float32)
        for i, (recordings, shares) in enumerate(zip(self._recordings, self._shares, strict=True)):
            active, samples = recordings[int(rng.choice(len(recordings), p=shares))]
            last = max(len(samples) - self.length, 0)
            start = int(rng.integers(last + 1))
            if rng.random() >= self.anywhere:
                start = _draw_start(active, self.length, last, rng)
            chunk = to_float(samples[start : start + self.length])[0]
            waves[i, :, : chunk.shape[1]] = chunk
        return waves.sum(axis=0), waves, np.ones(len(waves), np.float32)


def _shares(songs: Iterable[NDArray[np.int16]]) -> NDArray[np.float64]:
    lengths = np.array([len(samples) for samples in songs], np.float64)
    shares: NDArray[np.float64] = lengths / lengths.sum()
    return shares


def _draw_start(active: NDArray[np.bool_], length: int, last: int, rng: np.random.Generator) -> int:
    """Where to cut a chunk that contains one of the active blocks (blocks,), at most at `last`."""
    block = int(rng.choice(np.flatnonzero(active)))
    offset = int(rng.integers(length))  # of the block's middle in the chunk
    return min(max(block * ACTIVITY_BLOCK + ACTIVITY_BLOCK // 2 - offset, 0), last)
