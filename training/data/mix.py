"""Training mixtures made while training: pools of int16 arrays in, batches of mixture and stems out.

Three kinds of example, in the proportions of the config:
    stems           every stem from another song: all of them are known
    accompaniment   a voice over mixed and mastered music: only the vocals are known
    song            one moment of one real song: what its manifest row does not mask is known
Batch `step` depends on the seed and on `step` alone, so that a resumed run sees what the
uninterrupted one would have seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

Floats = NDArray[np.float32]
STEMS = ("vocals", "drums", "bass", "other")
INT16 = 32_768.0
SILENT = 10 ** (-60 / 20)  # RMS of full scale under which a chunk counts as silence


@dataclass(frozen=True, kw_only=True)
class MixSettings:
    """How mixtures are drawn. Levels in dB of full scale, pitches in semitones."""

    seconds: float = 3.0
    sample_rate: int = 44_100
    kinds: dict[str, float] = field(
        default_factory=lambda: {"stems": 0.45, "accompaniment": 0.4, "song": 0.15}
    )
    level: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": -20.0,
            "drums": -20.0,
            "bass": -22.0,
            "other": -21.0,
            "accompaniment": -17.0,
        }
    )
    level_spread: float = 4.0  # standard deviation, dB
    drop: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.2,
            "drums": 0.12,
            "bass": 0.15,
            "other": 0.08,
            "accompaniment": 0.0,
        }
    )
    pitch: dict[str, float] = field(
        default_factory=lambda: {"vocals": 5.0, "drums": 3.0, "bass": 3.0, "other": 4.0, "accompaniment": 3.0}
    )
    second: dict[str, float] = field(default_factory=lambda: {"vocals": 0.2, "other": 0.35})
    album_vocals: float = 0.25  # share of vocals that come from real songs
    mono: float = 0.3  # share of mixtures folded to mono
    equalizer: float = 5.0  # dB, standard deviation of each of a few points


@dataclass(frozen=True)
class _Array:
    samples: NDArray[np.int16]  # (n, c), memory-mapped
    segments: list[tuple[int, int]]  # sample ranges that a chunk may not cross
    weights: Floats  # of the segments


class Mixer:
    """Draws mixtures from a folder that `training.data.build` wrote.

    Raises ValueError where a pool that the settings ask for is empty.
    """

    def __init__(self, pools: Path, settings: MixSettings, *, seed: int = 0) -> None:
        self.settings, self.seed = settings, seed
        self.length = round(settings.seconds * settings.sample_rate)
        self._pools: dict[str, list[_Array]] = {}
        self._weights: dict[str, Floats] = {}
        self._songs: dict[str, dict[str, Any]] = {}
        minutes: dict[str, list[float]] = {}
        for row in json.loads((pools / "manifest.json").read_text())["sources"]:
            samples = np.load(pools / row["array"], mmap_mode="r")
            if row["pool"] == "song":
                song = self._songs.setdefault(row["song"], {"stems": {}, "masked": row.get("masked", [])})
                song["stems"][row["stem"]] = samples
                continue
            segments = [(start, end) for start, end in row["segments"] if end > start]
            lengths = np.array([end - start for start, end in segments], np.float32)
            array = _Array(samples, segments, lengths / lengths.sum())
            self._pools.setdefault(row["pool"], []).append(array)
            minutes.setdefault(row["pool"], []).append(row["minutes"])
        short = [name for name, song in self._songs.items() if _frames(song["stems"]) < self.length]
        if short:
            raise ValueError(f"{pools}: the song {short[0]!r} is shorter than {settings.seconds} s")
        self._sung = [
            song["stems"]["vocals"]
            for _, song in sorted(self._songs.items())
            if "vocals" in song["stems"] and "vocals" not in song["masked"]
        ]
        for pool, values in minutes.items():
            # The square root keeps a long source from drowning the many short ones: variety before minutes.
            weights = np.sqrt(np.array(values, np.float32))
            self._weights[pool] = weights / weights.sum()
        needed = {"vocals"} | ({"drums", "bass", "other"} if settings.kinds.get("stems") else set())
        needed |= {"accompaniment"} if settings.kinds.get("accompaniment") else set()
        if settings.kinds.get("song") and not self._songs:
            needed |= {"drums", "bass", "other"}  # `example` falls back to stems
        if missing := sorted(needed - set(self._pools)):
            raise ValueError(
                f"{pools}: the pool {missing[0]!r} is empty; run python -m training.data.build first"
            )

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mixtures (b, c, n), stems (b, s, c, n), and which stems are known (b, s), all float32."""
        examples = [self.example(np.random.default_rng((self.seed, step, i))) for i in range(size)]
        mixture, stems, known = (np.stack(parts) for parts in zip(*examples, strict=True))
        return torch.from_numpy(mixture), torch.from_numpy(stems), torch.from_numpy(known)

    def example(self, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
        """One mixture (c, n), its stems (s, c, n), and which of them are known (s,)."""
        settings = self.settings
        kinds = list(settings.kinds)
        shares = np.array([settings.kinds[kind] for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        stems = np.zeros((len(STEMS), 2, self.length), np.float32)
        known = np.ones(len(STEMS), np.float32)
        rest: Floats = np.zeros((2, self.length), np.float32)
        if kind == "song" and self._songs:
            stems, known = self._song(rng)
        elif kind == "accompaniment":
            stems[0] = self._source("vocals", rng)
            rest = self._source("accompaniment", rng)
            known[1:] = 0
        else:
            for i, stem in enumerate(STEMS):
                stems[i] = self._source(stem, rng)
        if rng.random() < settings.mono:
            stems, rest = _to_mono(stems), _to_mono(rest)
        if rng.random() < 0.5:
            stems, rest = stems[:, ::-1], rest[::-1]
        mixture = stems.sum(axis=0) + rest
        gain = _db(rng.uniform(-24, -12)) / max(_active_rms(mixture), SILENT)
        gain = min(gain, 1.0 / max(float(np.abs(mixture).max()), 1e-9))
        return (mixture * gain).astype(np.float32), (stems * gain).astype(np.float32), known

    def _song(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """One moment of one song: stems (s, c, n), each a little louder or softer, and which are known."""
        song = self._songs[sorted(self._songs)[int(rng.integers(len(self._songs)))]]
        n = _frames(song["stems"])
        start = int(rng.integers(n - self.length + 1))
        stems = np.zeros((len(STEMS), 2, self.length), np.float32)
        for i, stem in enumerate(STEMS):
            if stem in song["stems"]:
                stems[i] = _floats(song["stems"][stem][start : start + self.length]) * _db(rng.normal(0, 3))
        return stems, np.array([stem not in song["masked"] for stem in STEMS], np.float32)

    def _source(self, pool: str, rng: np.random.Generator) -> Floats:
        """(c, n): a chunk of a pool, or two of them together, at a level of its own; or silence."""
        settings = self.settings
        if rng.random() < settings.drop[pool]:
            return np.zeros((2, self.length), np.float32)
        chunk = self._chunk(pool, rng)
        if rng.random() < settings.second.get(pool, 0.0):
            chunk = chunk + self._chunk(pool, rng) * _db(rng.uniform(-9, 0))
        level = rng.normal(settings.level[pool], settings.level_spread)
        rms = _active_rms(chunk)
        return chunk * (_db(level) / rms) if rms > SILENT else np.zeros_like(chunk)

    def _chunk(self, pool: str, rng: np.random.Generator) -> Floats:
        """(c, n): an augmented chunk, at an active level of one."""
        ratio = 2 ** (rng.uniform(-1, 1) * self.settings.pitch[pool] / 12) if rng.random() < 0.75 else 1.0
        wanted = int(self.length * ratio) + 64
        for _ in range(4):  # a chunk of silence teaches nothing here; `drop` gives silence on purpose
            chunk = self._read(pool, wanted, rng)
            if _active_rms(chunk) > SILENT * 10:
                break
        if ratio != 1.0:
            chunk = soxr.resample(chunk.T, ratio, 1.0, quality="LQ").T
        fitted = np.zeros((2, self.length), np.float32)
        fitted[:, : chunk.shape[1]] = chunk[:, : self.length]
        voice = pool == "vocals"
        if voice and rng.random() < 0.2:
            fitted = _drive(fitted, rng)
        fitted = self._colour(fitted, rng, wet=0.6 if voice else 0.25)
        if rng.random() < 0.5:
            fitted = fitted * np.array(_pan(rng.uniform(-0.6, 0.6)), np.float32)[:, None]
        sign = 1 if rng.random() < 0.5 else -1
        return fitted * np.float32(sign / max(_active_rms(fitted), SILENT))

    def _read(self, pool: str, n: int, rng: np.random.Generator) -> Floats:
        """(c, <= n) of a pool's arrays; short pieces are laid one after the other until they fill it."""
        if pool == "vocals" and self._sung and rng.random() < self.settings.album_vocals:
            song = self._sung[int(rng.integers(len(self._sung)))]
            start = int(rng.integers(max(len(song) - n, 1)))
            return _floats(song[start : start + n])
        arrays = self._pools[pool]
        array = arrays[int(rng.choice(len(arrays), p=self._weights[pool]))]
        parts: list[Floats] = []
        filled, index = 0, int(rng.choice(len(array.segments), p=array.weights))
        while filled < n:
            start, end = array.segments[index % len(array.segments)]
            if not parts and end - start > n:
                start = int(rng.integers(start, end - n))
            part = _floats(array.samples[start : min(end, start + n - filled)])
            pause = int(rng.uniform(0, 0.25) * self.settings.sample_rate)
            parts += [part, np.zeros((2, pause), np.float32)]
            filled += part.shape[1] + pause
            index += 1
        return np.concatenate(parts, axis=1)[:, :n]

    def _colour(self, x: Floats, rng: np.random.Generator, *, wet: float) -> Floats:
        """A random equalizer curve and, with probability `wet`, a room, in one multiplication of spectra."""
        rate, n = self.settings.sample_rate, self.length
        size = 2 ** int(np.ceil(np.log2(n + rate // 2)))
        points = np.array([40, 120, 400, 1200, 4000, 12_000])
        gains = rng.normal(0, self.settings.equalizer * 0.5, len(points))
        bins = np.maximum(np.fft.rfftfreq(size, 1 / rate), 1.0)
        curve = 10 ** (np.interp(np.log(bins), np.log(points), gains) / 20)
        response: Any = curve[None]
        if rng.random() < wet:
            decay = rng.uniform(0.08, 0.5)  # seconds to fall by 60 dB, times about 0.3
            tail = int(decay * rate)
            noise = rng.standard_normal((2, tail)) * np.exp(-6.9 * np.arange(tail) / tail)
            noise[:, : int(rng.uniform(0, 0.02) * rate)] = 0
            noise *= _db(rng.uniform(-20, -3)) / np.sqrt((noise**2).sum(axis=1, keepdims=True) + 1e-9)
            noise[:, 0] += 1.0
            response = response * np.fft.rfft(noise, size, axis=1)
        y = np.fft.irfft(np.fft.rfft(x, size, axis=1) * response, size, axis=1)[:, :n]
        return y.astype(np.float32)


class MixDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batches by step, for a DataLoader whose sampler counts steps."""

    def __init__(self, mixer: Mixer, *, batch_size: int) -> None:
        self.mixer, self.batch_size = mixer, batch_size

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.mixer.batch(step, self.batch_size)


def _frames(stems: dict[str, NDArray[np.int16]]) -> int:
    """Frames that all stems of a song have."""
    return min(len(samples) for samples in stems.values())


def _floats(samples: NDArray[np.int16]) -> Floats:
    """(n, 1 or 2) int16 -> (2, n) float32 at full scale +-1"""
    x = np.asarray(samples, np.float32).T / np.float32(INT16)
    return np.broadcast_to(x, (2, x.shape[1])) if x.shape[0] == 1 else x


def _to_mono(x: Floats) -> Floats:
    mean = x.mean(axis=-2, keepdims=True)
    return np.broadcast_to(mean, x.shape).astype(np.float32)


def _db(value: float) -> float:
    return float(10 ** (value / 20))


def _active_rms(x: Floats) -> float:
    """RMS of the louder half of 50 ms blocks: pauses must not make a voice count as soft."""
    block = 2205
    usable = x[:, : x.shape[1] // block * block]
    if usable.shape[1] == 0:
        return 0.0
    power = np.square(usable).reshape(x.shape[0], -1, block).mean(axis=(0, 2))
    return float(np.sqrt(np.sort(power)[len(power) // 2 :].mean()))


def _drive(x: Floats, rng: np.random.Generator) -> Floats:
    gain = rng.uniform(1, 6) / max(float(np.abs(x).max()), 1e-6)
    driven: Floats = np.tanh(x * np.float32(gain), dtype=np.float32)
    return driven


def _pan(position: float) -> tuple[float, float]:
    angle = (position + 1) * np.pi / 4
    return float(np.cos(angle) * np.sqrt(2)), float(np.sin(angle) * np.sqrt(2))
