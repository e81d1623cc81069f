"""Training mixtures made while training: pools of int16 arrays in, batches of mixture and stems out.

The kinds of example, in the proportions of the config:
    stems           every stem from another song: all of them are known
    band            one moment of a song rendered stem by stem, with a voice: all of them are known
    accompaniment   a voice over mixed and mastered music: only the vocals are known
    song            one moment of one real song, at times with another voice: what its manifest row does
                    not mask is known
The arrays lie on the device that mixes: in its memory, or mapped from their files on a CPU. Batch `step`
depends on the seed and on `step` alone, so that a resumed run sees what the uninterrupted one would have
seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.mixing import effects as mix_effects
from training.mixing import voices
from training.mixing.effects import Filters, active_rms, db
from training.mixing.pools import FULL_BAND, Array, Pools, Song, floats, recorded_level
from training.mixing.settings import MixSettings

Voice = tuple[Array, float]  # where it is read from, and how much higher it is played

STEMS = ("vocals", "drums", "bass", "other")
SILENT = 10 ** (-60 / 20)  # RMS of full scale under which a chunk counts as silence


@dataclass(frozen=True)
class _Master:
    """What all stems of a mixture share."""

    gains: NDArray[np.float64]  # dB, equalizer
    highest: float  # Hz


class Mixer:
    """Draws mixtures from a folder that `training.corpus.build` wrote, on `device`.

    Raises ValueError where a pool that the settings ask for is empty.
    """

    def __init__(
        self, pools: Path, settings: MixSettings, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.settings, self.seed, self.device = settings, seed, torch.device(device)
        self.length = round(settings.seconds * settings.sample_rate)
        self.filters = Filters(self.length, sample_rate=settings.sample_rate, seed=seed, device=self.device)
        self.pools = Pools(pools, self.device, voices=settings.voices)
        for name, song in (item for songs in self.pools.songs.values() for item in songs.items()):
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
        if missing := sorted(needed - set(self.pools.arrays)):
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
        shares = np.array([settings.kinds[kind] for kind in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        known = [True] * len(STEMS)
        coded, mastered = rng.random() < settings.codec, rng.random() < settings.master
        heard = self._voices(rng)
        # Where a voice has no treble, nothing has: else "no treble" would come to mean "voice".
        highest = min(array.bandwidth * ratio for array, ratio in heard)
        highest = np.inf if highest >= FULL_BAND else highest
        if coded:
            highest = min(highest, rng.uniform(11_000, 20_000))
        master = _Master(rng.normal(0, 1.5 * mastered, len(mix_effects.EQ_POINTS)), highest)
        rest = torch.zeros(2, self.length, device=self.device)
        if songs := list(self.pools.songs.get(kind, {}).values()):
            song = self._song(songs, rng)
            known = [stem not in song.masked for stem in STEMS]
            stems = self._moment(song, rng, master, kind)
            if kind == "band" or (rng.random() < settings.song_voice and not song.estimated):
                stems[0], known[0] = self._source("vocals", rng, master, heard), True
        elif kind == "accompaniment":
            stems = torch.zeros(len(STEMS), 2, self.length, device=self.device)
            known = [stem == "vocals" for stem in STEMS]
            stems[0] = self._source("vocals", rng, master, heard)
            playing = [(self.pools.draw("accompaniment", rng), self._ratio("accompaniment", rng))]
            rest = self._source("accompaniment", rng, master, playing)
        else:
            stems = torch.stack(
                [self._source(s, rng, master, heard if s == "vocals" else None) for s in STEMS]
            )
        if rng.random() < settings.mono:
            stems, rest = (x.mean(dim=-2, keepdim=True).expand_as(x) for x in (stems, rest))
        if rng.random() < 0.5:
            stems, rest = stems.flip(-2), rest.flip(-2)
        mixture = stems.sum(dim=0) + rest
        level = db(rng.uniform(-24, -12))
        if mastered:
            gain = mix_effects.limiter(mixture, float(mixture.abs().max()) * db(-rng.uniform(1, 9)) + 1e-9)
            mixture, stems, level = mixture * gain, stems * gain, level * db(rng.uniform(0, 6))
        if coded:
            mixture = mix_effects.codec(mixture, rng)
        scale = level / active_rms(mixture).clamp(min=SILENT)
        scale = torch.minimum(scale, 1 / mixture.abs().max().clamp(min=1e-9))
        return mixture * scale, stems * scale, torch.tensor(known, dtype=torch.float32, device=self.device)

    def _voices(self, rng: np.random.Generator) -> list[Voice]:
        """One voice or two."""
        count = 2 if rng.random() < self.settings.second.get("vocals", 0.0) else 1
        return [(self.pools.draw("vocals", rng), self._ratio("vocals", rng)) for _ in range(count)]

    def _ratio(self, pool: str, rng: np.random.Generator) -> float:
        """How much faster a chunk is played, and so how much higher."""
        semitones = rng.uniform(-1, 1) * self.settings.pitch[pool] if rng.random() < 0.75 else 0.0
        return float(2 ** (semitones / 12))

    def _song(self, songs: list[Song], rng: np.random.Generator) -> Song:
        """One of them; where all are drawn alike, the same seed goes on giving what it gave."""
        odds = [self.settings.estimated_songs if song.estimated else 1.0 for song in songs]
        uneven = np.divide(odds, sum(odds)) if len(set(odds)) > 1 else None
        return songs[int(rng.choice(len(songs), p=uneven))]

    def _moment(self, song: Song, rng: np.random.Generator, master: _Master, kind: str) -> Tensor:
        """One moment of a song: stems (s, c, n), each a little louder or softer, brighter or darker."""
        wanted, size = self.filters.read_size(self._ratio("song", rng))
        start = int(rng.integers(max(song.frames - wanted, 0) + 1))
        stems = torch.zeros(len(STEMS), 2, wanted, device=self.device)
        for i, stem in enumerate(STEMS):
            if stem in song.stems:
                part = floats(song.stems[stem][start : start + wanted])
                stems[i, :, : part.shape[1]] = part * db(self._gain(song, stem, kind, rng))
        # What a teacher took apart is equalized as a whole: else remains of one stem in another would show.
        gains = rng.normal(0, self.settings.equalizer, (len(STEMS), len(mix_effects.EQ_POINTS)))
        gains = master.gains + (gains[:1] if song.estimated else gains)
        responses = self._response(master, gains).expand(len(STEMS), -1).clone()
        responses[STEMS.index("other")] *= self._low_cut(kind, rng)
        responses[STEMS.index("bass")] *= self._high_cut(kind, rng)
        return self.filters.apply(stems, size, responses[:, None])

    def _gain(self, song: Song, stem: str, kind: str, rng: np.random.Generator) -> float:
        """dB by which a stem of a song is played louder than it was recorded.

        An album's stems were recorded as loud as they would go: only a mix makes a bass softer than drums.
        """
        if kind == "song" and self.settings.mixed_songs and not song.estimated:
            wanted = rng.normal(self.settings.level[stem], self.settings.level_spread)
            return float(wanted) - song.levels[stem]
        return float(rng.normal(0, 3))

    def _source(
        self,
        pool: str,
        rng: np.random.Generator,
        master: _Master,
        heard: list[Voice] | None = None,
    ) -> Tensor:
        """(2, n): a chunk of a pool, or two of them together, at a level of its own; or silence."""
        settings = self.settings
        silence = torch.zeros(2, self.length, device=self.device)
        if rng.random() < settings.drop[pool]:
            return silence
        if heard is None:
            count = 2 if rng.random() < settings.second.get(pool, 0.0) else 1
            heard = [(self.pools.draw(pool, rng), self._ratio(pool, rng)) for _ in range(count)]
        chunk = silence
        for index, (array, ratio) in enumerate(heard):
            chunk = chunk + self._chunk(pool, array, ratio, rng, master) * db(
                rng.uniform(-9, 0) * (index > 0)
            )
        rms = active_rms(chunk)
        level = db(rng.normal(settings.level[pool], settings.level_spread))
        return torch.where(rms > SILENT, chunk * (level / rms.clamp(min=SILENT)), silence)

    def _chunk(
        self, pool: str, array: Array, ratio: float, rng: np.random.Generator, master: _Master
    ) -> Tensor:
        """(2, n): an augmented chunk, at an active level of one."""
        settings, filters = self.settings, self.filters
        wanted, size = filters.read_size(ratio)
        tempo = rng.uniform(0.8, 1.25) if rng.random() < settings.tempo.get(pool, 0.0) else 1.0
        for _ in range(4):  # a chunk of silence teaches nothing here; `drop` gives silence on purpose
            chunk = array.read(int(wanted * tempo), rng, sample_rate=settings.sample_rate)
            if active_rms(chunk) > SILENT * 10:
                break
        if pool == "vocals":
            chunk = voices.perform(chunk, wanted, rng, settings.voice, filters.noise(wanted, rng))
            if rng.random() < settings.compress:
                threshold = active_rms(chunk) * db(rng.uniform(-12, 3)) + 1e-9
                chunk = chunk * mix_effects.limiter(chunk, threshold, share=rng.uniform(0.33, 0.8))
        elif tempo != 1.0:
            chunk = voices.resynthesize(chunk, wanted)
        gains = master.gains + rng.normal(0, settings.equalizer, len(mix_effects.EQ_POINTS))
        response = self._response(master, gains) * self._low_cut(pool, rng) * self._high_cut(pool, rng)
        room = rng.random() < settings.room[pool] and not array.wet
        echo = pool == "vocals" and rng.random() < settings.echo
        if room or echo:
            response = response * filters.space(rng, room=room, echo=echo)
        chunk = filters.apply(chunk, size, response)
        angle = (rng.uniform(-0.6, 0.6) * (rng.random() < settings.pan[pool]) + 1) * np.pi / 4
        sign = 1 if rng.random() < 0.5 else -1
        sides = torch.tensor([[np.cos(angle)], [np.sin(angle)]], dtype=torch.float32).to(self.device)
        chunk = chunk * sides
        return chunk * (sign / active_rms(chunk).clamp(min=SILENT))

    def _low_cut(self, source: str, rng: np.random.Generator) -> Tensor | float:
        """Response (bins,) of a high-pass, or one, for a pool or kind."""
        wanted = self._happens(self.settings.low_cut.get(source, 0.0), rng)
        return self.filters.high_pass(rng.uniform(60, 200)) if wanted else 1.0

    def _high_cut(self, source: str, rng: np.random.Generator) -> Tensor | float:
        """Response (bins,) of a gentle low-pass, or one, for a pool or kind."""
        wanted = self._happens(self.settings.high_cut.get(source, 0.0), rng)
        return self.filters.roll_off(100 * 5 ** rng.random()) if wanted else 1.0  # Hz

    @staticmethod
    def _happens(probability: float, rng: np.random.Generator) -> bool:
        """Where it never does nothing is drawn: the same seed goes on giving what it gave."""
        return probability > 0 and rng.random() <= probability

    def _response(self, master: _Master, gains: NDArray[np.float64]) -> Tensor:
        response = self.filters.equalizer(gains)
        return response if master.highest == np.inf else response * self.filters.low_pass(master.highest)
