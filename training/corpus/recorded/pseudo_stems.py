"""Pseudo-stems of songs with vocals: clearly sung parts, unsung parts, and whole songs.

The voice is the teacher's estimate. To be mixed with other music, it is kept only where it is clear, with little
accompaniment left in it. The accompaniment to be mixed with other voices is the recording itself where nobody sings,
never the teacher's residual, whose artefacts and remains of the voice would be learned as accompaniment. In whole songs
the mixture is the recording, and the teacher's estimate is the target, errors included (distillation: Hinton, Vinyals,
Dean, arXiv:1503.02531).
"""

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.catalogue import (
    MOSTLY_SUNG,
    MUSIC_FOLDER,
    SUNG_PACKAGES,
    audio_files,
    package_terms,
)
from training.corpus.recorded.sources import (
    ARCHIVE_MARK,
    Audio,
    Piece,
    Source,
    active_level,
    read_audio,
    runs,
    stereo,
)
from training.corpus.recorded.teacher import LICENCE, VERSION, Teacher, weight_files

FRAME = SAMPLE_RATE // 2  # samples that are classified together
SUNG_SHARE = 0.1  # minimum share of a clear voice in the energy
SUNG_CLARITY = 0.85  # on the album's stems, this makes the voice 1 to 3 dB cleaner
SUNG_SHORTEST = 1.5  # s
SUNG_RANGE = 12  # dB below the song's level of voice down to which it is clear
UNSUNG_SHARE = 0.003  # maximum share of the estimated voice in the energy where nobody sings
UNSUNG_SHORTEST = 4.0  # s
SETTINGS = {"gates": [SUNG_SHARE, SUNG_CLARITY, SUNG_SHORTEST, UNSUNG_SHARE, UNSUNG_SHORTEST]}


@dataclasses.dataclass(frozen=True)
class VoicePowers:
    """Mean powers of a song and of the teacher's estimate of its voice, (frames,) each."""

    voice: NDArray[np.float64]
    song: NDArray[np.float64]
    cross: NDArray[np.float64]  # mean product of the two: the song's power weighted by the mask

    @property
    def share(self) -> NDArray[np.float64]:
        """The voice's share of the energy."""
        return self.voice / (self.song + 1e-9)

    @property
    def clarity(self) -> NDArray[np.float64]:
        """Mean of the mask where the voice is: 1 for a voice alone in its bins, low for bleed."""
        return self.voice / (self.cross + 1e-9)


def analyse(song: Audio, voice: Audio) -> VoicePowers:
    """Measure two (n, 2) signals by frames of FRAME samples; an incomplete last frame is ignored."""
    count = len(song) // FRAME

    def power(a: Audio, b: Audio) -> NDArray[np.float64]:
        product = a[: count * FRAME] * b[: count * FRAME]
        return np.asarray(product.reshape(count, -1).mean(axis=1, dtype=np.float64))

    return VoicePowers(power(voice, voice), power(song, song), power(voice, song))


def sung_frames(powers: VoicePowers) -> NDArray[np.bool_]:
    """The frames with a clear voice."""
    clear = (powers.share > SUNG_SHARE) & (powers.clarity > SUNG_CLARITY)
    if not clear.any():
        return clear
    threshold = 10 ** (-SUNG_RANGE / 10) * np.percentile(powers.voice[clear], 75)
    return np.asarray(clear & (powers.voice > max(threshold, 1e-5)))


def frame_spans(mask: NDArray[np.bool_], *, shortest: float) -> Iterator[tuple[int, int]]:
    """Sample ranges of at least `shortest` s of consecutive frames that are true."""
    for first, last in runs(np.flatnonzero(mask)):
        if (last + 1 - first) * FRAME >= shortest * SAMPLE_RATE:
            yield first * FRAME, (last + 1) * FRAME


@lru_cache(maxsize=1)
def load_teacher(files: tuple[str, ...]) -> Teacher:
    """One teacher per process."""
    return Teacher(files)


def _estimate(source: Source) -> Iterator[tuple[str, Audio, Audio, VoicePowers]]:
    """Name, song, voice and their powers; the source's first two files are the weights."""
    teacher = load_teacher(source.files[:2])
    for name in source.files[2:]:
        song = stereo(read_audio(name))
        voice = teacher.vocals(song)
        yield Path(name.split(ARCHIVE_MARK)[-1]).name, song, voice, analyse(song, voice)


def estimate_vocals(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The teacher's estimate of the voice where it is clear, normalized per song; (n, 2)."""
    fade = np.linspace(0, 1, SAMPLE_RATE // 50, dtype=np.float32)[:, None]
    for name, _, voice, powers in _estimate(source):
        spans = frame_spans(sung_frames(powers), shortest=SUNG_SHORTEST)
        pieces = [(start, voice[start:end].copy()) for start, end in spans]
        if not pieces:
            continue
        gain = 10 ** ((-20 - active_level(np.concatenate([p for _, p in pieces]))) / 20)
        for start, piece in pieces:
            piece[: len(fade)] *= fade
            piece[-len(fade) :] *= fade[::-1]
            loudest = float(np.abs(piece).max())
            yield Piece(piece * min(gain, 0.98 / loudest), f"{name}@{start}")


def extract_accompaniment(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The recording itself where nobody sings, at its recorded level; (n, 2)."""
    for name, song, _, powers in _estimate(source):
        unsung = (powers.share < UNSUNG_SHARE) & (powers.song > 1e-5)
        for start, end in frame_spans(unsung, shortest=UNSUNG_SHORTEST):
            piece = song[start:end]
            yield Piece(piece / max(1.0, float(np.abs(piece).max()) / 0.98), f"{name}@{start}")


def estimate_song_stem(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The estimated voice of a whole song or its residual (settings["stem"]); (n, 2)."""
    for name, song, voice, _ in _estimate(source):
        yield Piece(voice if source.settings["stem"] == "vocals" else song - voice, name)


def pseudo_sources(debian: Path, weights: Path) -> list[Source]:
    """For each package with vocals: its voice, its music where nobody sings, and two stems per song.

    Raises ValueError if the teacher's weights are missing.
    """
    teacher = weight_files(weights)
    sources = []
    for package, (singers, terms) in SUNG_PACKAGES.items():
        root = debian / package
        songs = tuple(f for f in audio_files(root) if MUSIC_FOLDER.search(f)) if root.is_dir() else ()
        if not songs:
            continue
        licence, kind, version = package_terms(root, {package: terms})
        provenance = (f"{licence}; pseudo-stem by {LICENCE}", kind, f"{version}, {VERSION}")
        name, files = f"pseudo-{package.removesuffix('-data')}", (*teacher, *songs)
        extra = {"teacher": f"{VERSION}, {LICENCE}"}
        singing = {**extra, "voice": "song", "speakers": singers}
        sources += [
            Source("vocals", name, *provenance, "pseudo_vocals", files, SETTINGS, singing),
            Source("accompaniment", name, *provenance, "pseudo_accompaniment", files, SETTINGS, extra),
        ]
        for song in songs:
            if (title := Path(song).stem) not in MOSTLY_SUNG:
                continue
            for stem in ("vocals", "other"):  # "other" is everything but the voice
                columns = {**extra, "song": title, "stem": stem, "masked": ["drums", "bass", "other"]}
                files, settings = (*teacher, song), {"stem": stem}
                sources.append(
                    Source("song", f"{title}.{stem}", *provenance, "pseudo_song", files, settings, columns)
                )
    return sources
