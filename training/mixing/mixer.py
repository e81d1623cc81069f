"""Training mixtures drawn during training: pools of int16 samples in, batches of mixtures and stems out.

The kinds of example, drawn in the proportions of the config:
    stems           every stem from another source; all are known
    band            an excerpt of a song rendered stem by stem, with a voice; all stems are known
    accompaniment   a voice over mixed and mastered music; only the vocals are known
    song            an excerpt of a real song, sometimes with another voice; stems are known unless the manifest
                    masks them
Samples are held in the memory of the device that mixes or, on a CPU, mapped from their files. A batch depends only on
the seed and its step, so a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tfswa_sep.constants import STEMS
from training.mixing import effects, voices
from training.mixing.effects import EQ_POINTS, Filters, active_rms, db_to_gain
from training.mixing.pools import FULL_BAND, Pools, Recording, Song, recorded_level, to_float
from training.mixing.settings import MixSettings

Part = tuple[Recording, float]  # a recording, and the factor by which its pitch is raised

SILENCE = 10 ** (-60 / 20)  # RMS below which a chunk counts as silent; full scale is 1


@dataclass(frozen=True)
class _Master:
    """Filters that all stems of a mixture share."""

    gains: NDArray[np.float64]  # dB, equalizer
    cutoff: float  # Hz, low-pass


class Mixer:
    """Draws mixtures from a folder written by `training.corpus.build`, on `device`.

    Raises ValueError if a pool that the settings need is empty.
    """

    def __init__(
        self, pools: Path, settings: MixSettings, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.settings, self.seed, self.device = settings, seed, torch.device(device)
        self.length = round(settings.seconds * settings.sample_rate)
        self.filters = Filters(self.length, sample_rate=settings.sample_rate, seed=seed, device=self.device)
        self.pools = Pools(pools, self.device, voices=settings.voices)
        for songs in self.pools.songs.values():
            for name, song in songs.items():
                if song.frames < self.length:
                    raise ValueError(f"{pools}: the song {name!r} is shorter than {settings.seconds} s")
        if settings.mixed_songs:  # reads all of their stems, which takes seconds
            for song in self.pools.songs["song"].values():
                if not song.estimated:
                    song.levels = {stem: recorded_level(samples) for stem, samples in song.stems.items()}
        needed = {"vocals"} | ({"drums", "bass", "other"} if settings.kinds.get("stems") else set())
        if settings.kinds.get("accompaniment"):
            needed.add("accompaniment")
        if any(settings.kinds.get(kind) and not songs for kind, songs in self.pools.songs.items()):
            needed |= {"drums", "bass", "other"}  # `example` falls back to stems
        if missing := sorted(needed - set(self.pools.recordings)):
            raise ValueError(
                f"{pools}: the pool {missing[0]!r} is empty; run python -m training.corpus.build first"
            )

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mixtures (b, c, n), stems (b, s, c, n), and which stems are known (b, s), all float32."""
        examples = [self.example(np.random.default_rng((self.seed, step, i))) for i in range(size)]
        mixture, stems, known = (torch.stack(parts) for parts in zip(*examples, strict=True))
        return mixture, stems, known

    def example(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One mixture (c, n), its stems (s, c, n), and which of them are known (s,)."""
        settings = self.settings
        kinds = list(settings.kinds)
        weights = np.array([settings.kinds[kind] for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        known = [True] * len(STEMS)
        coded, mastered = rng.random() < settings.codec, rng.random() < settings.master
        singers = self._draw_parts("vocals", rng)
        # If the voice has no treble, nothing may have: otherwise "no treble" would come to mean "voice".
        cutoff = min(recording.bandwidth * ratio for recording, ratio in singers)
        cutoff = np.inf if cutoff >= FULL_BAND else cutoff
        if coded:
            cutoff = min(cutoff, rng.uniform(11_000, 20_000))
        master = _Master(rng.normal(0, 1.5 * mastered, len(EQ_POINTS)), cutoff)
        rest = torch.zeros(2, self.length, device=self.device)
        if songs := list(self.pools.songs.get(kind, {}).values()):
            song = self._draw_song(songs, rng)
            known = [stem not in song.masked for stem in STEMS]
            stems = self._draw_excerpt(song, rng, master, kind)
            if kind == "band" or (rng.random() < settings.song_voice and not song.estimated):
                stems[0], known[0] = self._draw_stem("vocals", rng, master, singers), True
        elif kind == "accompaniment":
            stems = torch.zeros(len(STEMS), 2, self.length, device=self.device)
            known = [stem == "vocals" for stem in STEMS]
            stems[0] = self._draw_stem("vocals", rng, master, singers)
            rest = self._draw_stem("accompaniment", rng, master, [self._draw_part("accompaniment", rng)])
        else:
            stems = torch.stack(
                [self._draw_stem(s, rng, master, singers if s == "vocals" else None) for s in STEMS]
            )
        if rng.random() < settings.mono:
            stems, rest = (x.mean(dim=-2, keepdim=True).expand_as(x) for x in (stems, rest))
        if rng.random() < 0.5:
            stems, rest = stems.flip(-2), rest.flip(-2)
        mixture = stems.sum(dim=0) + rest
        level = db_to_gain(rng.uniform(-24, -12))
        if mastered:
            ceiling = float(mixture.abs().max()) * db_to_gain(-rng.uniform(1, 9)) + 1e-9
            gain = effects.limiter_gain(mixture, ceiling)
            mixture, stems, level = mixture * gain, stems * gain, level * db_to_gain(rng.uniform(0, 6))
        if coded:
            mixture = effects.simulate_codec(mixture, rng)
        scale = level / active_rms(mixture).clamp(min=SILENCE)
        scale = torch.minimum(scale, 1 / mixture.abs().max().clamp(min=1e-9))
        return mixture * scale, stems * scale, torch.tensor(known, dtype=torch.float32, device=self.device)

    def _draw_part(self, pool: str, rng: np.random.Generator) -> Part:
        return self.pools.draw(pool, rng), self._draw_ratio(pool, rng)

    def _draw_parts(self, pool: str, rng: np.random.Generator) -> list[Part]:
        """One part or two that sound together."""
        count = 2 if rng.random() < self.settings.second.get(pool, 0.0) else 1
        return [self._draw_part(pool, rng) for _ in range(count)]

    def _draw_ratio(self, pool: str, rng: np.random.Generator) -> float:
        """The factor by which a chunk is played faster and higher."""
        semitones = rng.uniform(-1, 1) * self.settings.pitch[pool] if rng.random() < 0.75 else 0.0
        return float(2 ** (semitones / 12))

    def _draw_song(self, songs: list[Song], rng: np.random.Generator) -> Song:
        weights = [self.settings.estimated_songs if song.estimated else 1.0 for song in songs]
        # Equal weights stay None, which draws other numbers than an array: a seed keeps giving the same examples.
        shares = np.divide(weights, sum(weights)) if len(set(weights)) > 1 else None
        return songs[int(rng.choice(len(songs), p=shares))]

    def _draw_excerpt(self, song: Song, rng: np.random.Generator, master: _Master, kind: str) -> Tensor:
        """An excerpt of a song, (s, c, n), with the level and equalization of each stem varied."""
        read, size = self.filters.read_size(self._draw_ratio("song", rng))
        start = int(rng.integers(max(song.frames - read, 0) + 1))
        stems = torch.zeros(len(STEMS), 2, read, device=self.device)
        for i, stem in enumerate(STEMS):
            if stem in song.stems:
                samples = to_float(song.stems[stem][start : start + read])
                stems[i, :, : samples.shape[1]] = samples * db_to_gain(self._draw_gain(song, stem, kind, rng))
        # Estimated stems share one equalizer: otherwise the bleed between them would become audible.
        gains = rng.normal(0, self.settings.equalizer, (len(STEMS), len(EQ_POINTS)))
        gains = master.gains + (gains[:1] if song.estimated else gains)
        responses = self._response(master, gains).expand(len(STEMS), -1).clone()
        responses[STEMS.index("other")] *= self._draw_low_cut(kind, rng)
        responses[STEMS.index("bass")] *= self._draw_high_cut(kind, rng)
        return self.filters.apply(stems, size, responses[:, None])

    def _draw_gain(self, song: Song, stem: str, kind: str, rng: np.random.Generator) -> float:
        """dB by which a stem of a song is changed.

        The album's stems are normalized: only a mix makes its bass softer than its drums.
        """
        if kind == "song" and self.settings.mixed_songs and not song.estimated:
            level = rng.normal(self.settings.level[stem], self.settings.level_spread)
            return float(level) - song.levels[stem]
        return float(rng.normal(0, 3))

    def _draw_stem(
        self, pool: str, rng: np.random.Generator, master: _Master, parts: list[Part] | None = None
    ) -> Tensor:
        """Chunks of one or two parts at a random level, (2, n), or silence."""
        settings = self.settings
        silence = torch.zeros(2, self.length, device=self.device)
        if rng.random() < settings.drop[pool]:
            return silence
        if parts is None:
            parts = self._draw_parts(pool, rng)
        stem = silence
        for index, (recording, ratio) in enumerate(parts):
            chunk = self._draw_chunk(pool, recording, ratio, rng, master)
            stem = stem + chunk * db_to_gain(rng.uniform(-9, 0) * (index > 0))
        rms = active_rms(stem)
        level = db_to_gain(rng.normal(settings.level[pool], settings.level_spread))
        return torch.where(rms > SILENCE, stem * (level / rms.clamp(min=SILENCE)), silence)

    def _draw_chunk(
        self, pool: str, recording: Recording, ratio: float, rng: np.random.Generator, master: _Master
    ) -> Tensor:
        """An augmented chunk, (2, n), with an active level of one."""
        settings, filters = self.settings, self.filters
        read, size = filters.read_size(ratio)
        tempo = rng.uniform(0.8, 1.25) if rng.random() < settings.tempo.get(pool, 0.0) else 1.0
        for _ in range(4):  # retry on silence, which `drop` provides on purpose
            chunk = recording.read(int(read * tempo), rng, sample_rate=settings.sample_rate)
            if active_rms(chunk) > SILENCE * 10:
                break
        if pool == "vocals":
            chunk = voices.perform(chunk, read, rng, settings.voice, filters.noise(read, rng))
            if rng.random() < settings.compress:
                threshold = active_rms(chunk) * db_to_gain(rng.uniform(-12, 3)) + 1e-9
                chunk = chunk * effects.limiter_gain(chunk, threshold, share=rng.uniform(0.33, 0.8))
        elif tempo != 1.0:
            chunk = voices.resynthesize(chunk, read)
        gains = master.gains + rng.normal(0, settings.equalizer, len(EQ_POINTS))
        response = self._response(master, gains)
        response = response * self._draw_low_cut(pool, rng) * self._draw_high_cut(pool, rng)
        room = rng.random() < settings.room[pool] and not recording.wet
        echo = pool == "vocals" and rng.random() < settings.echo
        if room or echo:
            response = response * filters.reverb(rng, room=room, echo=echo)
        chunk = filters.apply(chunk, size, response)
        angle = (rng.uniform(-0.6, 0.6) * (rng.random() < settings.pan[pool]) + 1) * np.pi / 4
        sign = 1 if rng.random() < 0.5 else -1
        sides = torch.tensor([[np.cos(angle)], [np.sin(angle)]], dtype=torch.float32).to(self.device)
        chunk = chunk * sides
        return chunk * (sign / active_rms(chunk).clamp(min=SILENCE))

    def _draw_low_cut(self, pool_or_kind: str, rng: np.random.Generator) -> Tensor | float:
        """Response (bins,) of a high-pass, or one."""
        cut = self._draw_chance(self.settings.low_cut.get(pool_or_kind, 0.0), rng)
        return self.filters.high_pass(rng.uniform(60, 200)) if cut else 1.0

    def _draw_high_cut(self, pool_or_kind: str, rng: np.random.Generator) -> Tensor | float:
        """Response (bins,) of a gentle low-pass, or one."""
        cut = self._draw_chance(self.settings.high_cut.get(pool_or_kind, 0.0), rng)
        return self.filters.gentle_low_pass(100 * 5 ** rng.random()) if cut else 1.0  # Hz

    @staticmethod
    def _draw_chance(probability: float, rng: np.random.Generator) -> bool:
        """Draws nothing at zero probability, so that a seed keeps giving the same examples."""
        return probability > 0 and rng.random() <= probability

    def _response(self, master: _Master, gains: NDArray[np.float64]) -> Tensor:
        response = self.filters.equalizer(gains)
        return response if master.cutoff == np.inf else response * self.filters.low_pass(master.cutoff)
