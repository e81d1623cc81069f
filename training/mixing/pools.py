"""Pools written by `training.corpus.build`, in a device's memory or, on a CPU, mapped from their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.corpus import BAND

INT16 = 32_768.0
FULL_BAND = 17_500.0  # Hz; a bandwidth from here on counts as full
LEVEL_BLOCK = 4410  # samples
MAX_PAUSE = 0.25  # s, between short segments that are read in a row


@dataclass(frozen=True)
class Recording:
    """One source: samples (n, c) int16 on the device, and the segments that no chunk may cross."""

    samples: Tensor
    segments: list[tuple[int, int]]  # sample ranges [start, end)
    bandwidth: float = FULL_BAND  # Hz
    wet: bool = False  # recorded with reverb: none is added

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Samples of each segment."""
        return np.array([end - start for start, end in self.segments], np.float64)

    def read(self, n: int, rng: np.random.Generator, *, sample_rate: int) -> Tensor:
        """A random excerpt, (c, n) float32, of one long segment or of several short ones in a row."""
        parts: list[Tensor] = []
        lengths = self.lengths
        filled, index = 0, int(rng.choice(len(lengths), p=lengths / lengths.sum()))
        while filled < n:
            start, end = self.segments[index % len(self.segments)]
            if not parts and end - start > n:
                start = int(rng.integers(start, end - n))
            part = to_float(self.samples[start : min(end, start + n - filled)])
            pause = int(rng.uniform(0, MAX_PAUSE) * sample_rate)
            parts += [part, part.new_zeros(part.shape[0], pause)]
            filled += part.shape[1] + pause
            index += 1
        return torch.cat(parts, dim=1)[:, :n]


@dataclass
class Song:
    """Aligned stems of a song, and which of them must not be supervised."""

    stems: dict[str, Tensor] = field(default_factory=dict)  # (n, c) int16
    masked: list[str] = field(default_factory=list)
    estimated: bool = False  # stems by the teacher, with artefacts and bleed: its voice is not replaced
    levels: dict[str, float] = field(default_factory=dict)  # dBFS of stems, if the mixer needs them

    @property
    def frames(self) -> int:
        """Length of the shortest stem."""
        return min(len(samples) for samples in self.stems.values())


class Pools:
    """The recordings of a folder by pool, and its songs by pool ("song" or "band") and name.

    `voices` weights each kind of voice (`training.corpus.recorded.catalogue.VOICE_KINDS`); the shares of kinds that
    the folder lacks go to the others. Raises ValueError if that leaves no voice.
    """

    def __init__(self, folder: Path, device: torch.device, *, voices: Mapping[str, float]) -> None:
        self.recordings: dict[str, list[Recording]] = {}
        self.songs: dict[str, dict[str, Song]] = {"song": {}, "band": {}}
        minutes: dict[str, list[float]] = {}
        arrays: dict[str, Tensor] = {}  # by file: pools may share one
        kinds: list[str] = []  # of the recordings in the pool "vocals"
        for row in json.loads((folder / "manifest.json").read_text())["sources"]:
            if (file := row["array"]) not in arrays:
                # Mapped copy-on-write, since torch accepts no read-only memory. Nothing writes to it.
                arrays[file] = torch.from_numpy(np.load(folder / file, mmap_mode="c")).to(device)
            samples = arrays[file]
            if row["pool"] in self.songs:
                song = self.songs[row["pool"]].setdefault(
                    row["song"], Song(masked=row.get("masked", []), estimated="teacher" in row)
                )
                song.stems[row["stem"]] = samples
                continue
            segments = [(start, end) for start, end in row["segments"] if end > start]
            bandwidth, wet = row.get("bandwidth_hz", FULL_BAND), row.get("wet", False)
            self.recordings.setdefault(row["pool"], []).append(Recording(samples, segments, bandwidth, wet))
            minutes.setdefault(row["pool"], []).append(row["minutes"])
            if row["pool"] == "vocals":
                kinds.append(row.get("voice", "singing"))
        self.songs = {pool: dict(sorted(songs.items())) for pool, songs in self.songs.items()}
        # Bands of an unfinished build may lack stems, which would be learned as silence.
        bands = self.songs["band"].items()
        self.songs["band"] = {name: song for name, song in bands if song.stems.keys() == set(BAND)}
        # The square root keeps long sources from crowding out the many short ones.
        weights = {pool: np.sqrt(values) for pool, values in minutes.items()}
        if "vocals" in weights:
            totals = {kind: weights["vocals"][np.array(kinds) == kind].sum() for kind in kinds}
            weights["vocals"] *= [voices.get(kind, 0.0) / totals[kind] for kind in kinds]
            if not weights["vocals"].any():
                raise ValueError(f"{folder}: no voices of the requested kinds, only {sorted(set(kinds))}")
        self._shares = {pool: weight / weight.sum() for pool, weight in weights.items()}

    def draw(self, pool: str, rng: np.random.Generator) -> Recording:
        """One of a pool's recordings."""
        return self.recordings[pool][int(rng.choice(len(self.recordings[pool]), p=self._shares[pool]))]


def recorded_level(samples: Tensor) -> float:
    """RMS in dBFS of the blocks of (n, c) int16 samples that are within 30 dB of the loudest."""
    count = len(samples) // LEVEL_BLOCK
    power = (samples[: count * LEVEL_BLOCK].view(count, -1).float() / INT16).square().mean(dim=1)
    return float(10 * power[power > power.max() / 1000].mean().clamp(min=1e-12).log10())


def to_float(samples: Tensor) -> Tensor:
    """(n, c) int16 -> (c, n) float32 between -1 and 1."""
    return samples.T.to(torch.float32) / INT16
