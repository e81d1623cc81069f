"""The arrays that `training.corpus.build` wrote, in a device's memory or mapped from their files on a CPU."""

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
FULL_BAND = 17_500.0  # Hz; what reaches this far counts as whole
LEVEL_BLOCK = 4410  # samples
PAUSE = 0.25  # s, at most, between short pieces that are laid one after the other


@dataclass(frozen=True)
class Array:
    """One source: samples (n, c) int16 on the device, and the pieces that a chunk may not cross."""

    samples: Tensor
    segments: list[tuple[int, int]]  # sample ranges [start, end)
    bandwidth: float = FULL_BAND  # Hz
    wet: bool = False  # recorded with its room: none is added

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Samples of every piece."""
        return np.array([end - start for start, end in self.segments], np.float64)

    def read(self, n: int, rng: np.random.Generator, *, sample_rate: int) -> Tensor:
        """A random stretch, (c, n) float32; short pieces are laid one after the other until they fill it."""
        parts: list[Tensor] = []
        lengths = self.lengths
        filled, index = 0, int(rng.choice(len(lengths), p=lengths / lengths.sum()))
        while filled < n:
            start, end = self.segments[index % len(self.segments)]
            if not parts and end - start > n:
                start = int(rng.integers(start, end - n))
            part = floats(self.samples[start : min(end, start + n - filled)])
            pause = int(rng.uniform(0, PAUSE) * sample_rate)
            parts += [part, part.new_zeros(part.shape[0], pause)]
            filled += part.shape[1] + pause
            index += 1
        return torch.cat(parts, dim=1)[:, :n]


@dataclass
class Song:
    """Aligned stems of a real song, and which of its stems must not be supervised."""

    stems: dict[str, Tensor] = field(default_factory=dict)  # (n, c) int16
    masked: list[str] = field(default_factory=list)
    estimated: bool = False  # by a teacher: without its voice it has holes, and remains of the voice
    levels: dict[str, float] = field(default_factory=dict)  # dBFS of stems, where the mixer needs them

    @property
    def frames(self) -> int:
        """Frames that all stems have."""
        return min(len(samples) for samples in self.stems.values())


class Pools:
    """All arrays of a folder, by pool; songs, by pool ("song", or "band": nobody sings) and name.

    `voices` tells how often each kind of voice is drawn (see VOICE_KINDS in
    `training.corpus.recorded.catalogue`); kinds of which there are none leave their share to the others.
    Raises ValueError if that leaves no voice at all.
    """

    def __init__(self, folder: Path, device: torch.device, *, voices: Mapping[str, float]) -> None:
        self.arrays: dict[str, list[Array]] = {}
        self.songs: dict[str, dict[str, Song]] = {"song": {}, "band": {}}
        minutes: dict[str, list[float]] = {}
        loaded: dict[str, Tensor] = {}  # pools may share an array
        kinds: list[str] = []  # of the arrays of the vocals pool
        for row in json.loads((folder / "manifest.json").read_text())["sources"]:
            if (name := row["array"]) not in loaded:
                # Mapped copy-on-write: torch takes no read-only memory. Nothing writes to it.
                loaded[name] = torch.from_numpy(np.load(folder / name, mmap_mode="c")).to(device)
            samples = loaded[name]
            if row["pool"] in self.songs:
                song = self.songs[row["pool"]].setdefault(
                    row["song"], Song(masked=row.get("masked", []), estimated="teacher" in row)
                )
                song.stems[row["stem"]] = samples
                continue
            segments = [(start, end) for start, end in row["segments"] if end > start]
            array = Array(samples, segments, row.get("bandwidth_hz", FULL_BAND), wet=row.get("wet", False))
            self.arrays.setdefault(row["pool"], []).append(array)
            minutes.setdefault(row["pool"], []).append(row["minutes"])
            if row["pool"] == "vocals":
                kinds.append(row.get("voice", "singing"))
        self.songs = {pool: dict(sorted(songs.items())) for pool, songs in self.songs.items()}
        # A build that still goes on has bands without one of their stems: that would be taught to be silent.
        whole_bands = {n: song for n, song in self.songs["band"].items() if song.stems.keys() == set(BAND)}
        self.songs["band"] = whole_bands
        # The square root keeps a long source from drowning the many short ones: variety before minutes.
        weights = {pool: np.sqrt(values) for pool, values in minutes.items()}
        if "vocals" in weights:
            whole = {kind: weights["vocals"][np.array(kinds) == kind].sum() for kind in kinds}
            weights["vocals"] *= [voices.get(kind, 0.0) / whole[kind] for kind in kinds]
            if not weights["vocals"].any():
                raise ValueError(
                    f"{folder}: none of the voices asked for is there, only {sorted(set(kinds))}"
                )
        self._shares = {pool: weight / weight.sum() for pool, weight in weights.items()}

    def draw(self, pool: str, rng: np.random.Generator) -> Array:
        """One of a pool's arrays."""
        return self.arrays[pool][int(rng.choice(len(self.arrays[pool]), p=self._shares[pool]))]


def recorded_level(samples: Tensor) -> float:
    """RMS in dBFS of the blocks of (n, c) int16 that are within 30 dB of the loudest one."""
    count = len(samples) // LEVEL_BLOCK
    power = (samples[: count * LEVEL_BLOCK].view(count, -1).float() / INT16).square().mean(dim=1)
    return float(10 * power[power > power.max() / 1000].mean().clamp(min=1e-12).log10())


def floats(samples: Tensor) -> Tensor:
    """(n, c) int16 -> (c, n) float32 at full scale +-1"""
    return samples.T.to(torch.float32) / INT16
