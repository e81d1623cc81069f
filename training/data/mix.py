"""Training mixtures made while training: pools of int16 arrays in, batches of mixture and stems out.

Four kinds of example, in the proportions of the config:
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

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import mix_effects, voices
from training.data.mix_effects import Filters, active_rms, db
from training.data.pools import FULL_BAND, Array, Pools, Song, floats

Voice = tuple[Array, float]  # where it is read from, and how much higher it is played

STEMS = ("vocals", "drums", "bass", "other")
SILENT = 10 ** (-60 / 20)  # RMS of full scale under which a chunk counts as silence


@dataclass(frozen=True, kw_only=True)
class MixSettings:
    """How mixtures are drawn. Levels in dB of full scale, pitches in semitones, the rest probabilities.

    Defaults are what trials of some hundred steps favour (training/runs/README.md). One with limiter, coder
    and all manners of voices fell behind one without: they are off here, and a long training may want them.
    """

    seconds: float = 2.9606  # 256 frames; of 3 s there are 259, which the network pads to 288
    sample_rate: int = 44_100
    kinds: dict[str, float] = field(
        default_factory=lambda: {"stems": 0.3, "band": 0.2, "accompaniment": 0.15, "song": 0.35}
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
            "vocals": 0.12,
            "drums": 0.1,
            "bass": 0.12,
            "other": 0.06,
            "accompaniment": 0.0,
        }
    )
    pitch: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 5.0,
            "drums": 3.0,
            "bass": 3.0,
            "other": 4.0,
            "accompaniment": 3.0,
            "song": 2.0,
        }
    )  # changes the tempo alike, as a tape does
    tempo: dict[str, float] = field(
        default_factory=lambda: {"vocals": 0.15, "bass": 0.05, "other": 0.05, "accompaniment": 0.05}
    )  # of another tempo at the same pitch, 0.8 to 1.25
    second: dict[str, float] = field(default_factory=lambda: {"vocals": 0.1, "other": 0.2})
    voice: dict[str, float] = field(
        default_factory=lambda: {
            "formant": 0.2,
            "whisper": 0.0,
            "growl": 0.0,
            "drive": 0.1,
            "harmony": 0.0,
            "double": 0.05,
            "choir": 0.0,
        }
    )  # manners of voices, see training/data/voices.py
    room: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.6,
            "drums": 0.25,
            "bass": 0.25,
            "other": 0.25,
            "accompaniment": 0.1,
        }
    )
    echo: float = 0.1  # of a voice
    compress: float = 0.5  # of a voice, 1.5:1 to 5:1; the other pools were compressed as they were rendered
    voices: dict[str, float] = field(
        default_factory=lambda: {"song": 0.3, "singing": 0.4, "sung speech": 0.2, "speech": 0.1}
    )  # how often each of `training.data.catalogue.VOICE_KINDS` is drawn
    pan: dict[str, float] = field(
        default_factory=lambda: {
            "vocals": 0.2,
            "drums": 0.2,
            "bass": 0.1,
            "other": 0.6,
            "accompaniment": 0.2,
        }
    )  # away from the centre, where lead voices, kick and bass are in nearly all songs
    song_voice: float = 0.35  # share of songs whose voice gives way to another one
    mono: float = 0.3  # share of mixtures folded to mono
    equalizer: float = 3.0  # dB, standard deviation of each of a few points
    master: float = 0.0  # of one equalizer for all stems and a limiter
    codec: float = 0.0  # of a lossy coder: all stems lose their treble, only the mixture gets its noise


@dataclass(frozen=True)
class _Master:
    """What all stems of a mixture share."""

    gains: NDArray[np.float64]  # dB, equalizer
    highest: float  # Hz


class Mixer:
    """Draws mixtures from a folder that `training.data.build` wrote, on `device`.

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
        needed = {"vocals"} | ({"drums", "bass", "other"} if settings.kinds.get("stems") else set())
        needed |= {"accompaniment"} if settings.kinds.get("accompaniment") else set()
        if any(settings.kinds.get(kind) and not songs for kind, songs in self.pools.songs.items()):
            needed |= {"drums", "bass", "other"}  # `example` falls back to stems
        if missing := sorted(needed - set(self.pools.arrays)):
            raise ValueError(
                f"{pools}: the pool {missing[0]!r} is empty; run python -m training.data.build first"
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
            song = songs[int(rng.integers(len(songs)))]
            stems, known = self._moment(song, rng, master), [stem not in song.masked for stem in STEMS]
            if kind == "band" or (rng.random() < settings.song_voice and not song.estimated):
                stems[0], known[0] = self._source("vocals", rng, master, heard), True
        elif kind == "accompaniment":
            stems = torch.zeros(len(STEMS), 2, self.length, device=self.device)
            stems[0] = self._source("vocals", rng, master, heard)
            rest = self._source("accompaniment", rng, master)
            known = [True, False, False, False]
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

    def _moment(self, song: Song, rng: np.random.Generator, master: _Master) -> Tensor:
        """One moment of a song: stems (s, c, n), each a little louder or softer, brighter or darker."""
        wanted, size = self.filters.read_size(self._ratio("song", rng))
        start = int(rng.integers(max(song.frames - wanted, 0) + 1))
        stems = torch.zeros(len(STEMS), 2, wanted, device=self.device)
        for i, stem in enumerate(STEMS):
            if stem in song.stems:
                part = floats(song.stems[stem][start : start + wanted]) * db(rng.normal(0, 3))
                stems[i, :, : part.shape[1]] = part
        # What a teacher took apart is equalized as a whole: else remains of one stem in another would show.
        gains = rng.normal(0, self.settings.equalizer, (len(STEMS), len(mix_effects.EQ_POINTS)))
        gains = master.gains + (gains[:1] if song.estimated else gains)
        return self.filters.apply(stems, size, self._response(master, gains)[:, None])

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
        response = self._response(master, gains)
        room = rng.random() < settings.room[pool]
        echo = pool == "vocals" and rng.random() < settings.echo
        if room or echo:
            response = response * filters.space(rng, room=room, echo=echo)
        chunk = filters.apply(chunk, size, response)
        angle = (rng.uniform(-0.6, 0.6) * (rng.random() < settings.pan[pool]) + 1) * np.pi / 4
        sign = 1 if rng.random() < 0.5 else -1
        sides = torch.tensor([[np.cos(angle)], [np.sin(angle)]], dtype=torch.float32).to(self.device)
        chunk = chunk * sides
        return chunk * (sign / active_rms(chunk).clamp(min=SILENT))

    def _response(self, master: _Master, gains: NDArray[np.float64]) -> Tensor:
        response = self.filters.equalizer(gains)
        return response if master.highest == np.inf else response * self.filters.low_pass(master.highest)
