"""Songs with singers made into pseudo-stems: where the teacher hears a voice clearly, where none, and whole.

The voice is the teacher's estimate. To be remixed with other music it is kept only where it stands out, so
that little accompaniment is in it. The accompaniment to be remixed is the recording itself where nobody
sings, never what the teacher leaves of a sung stretch: that has holes, and remains of the voice would be
taught as accompaniment. Whole songs are never taken apart: the mixture is the recording, and the teacher's
estimate stands for its voice, errors and all (distillation: Hinton, Vinyals, Dean, arXiv:1503.02531).
"""

import dataclasses
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.corpus.recorded.catalogue import (
    MUSIC_FOLDER,
    SUNG_THROUGHOUT,
    WITH_SINGER,
    audio_files,
    package_terms,
)
from training.corpus.recorded.sources import (
    ARCHIVE_MARK,
    SAMPLE_RATE,
    Audio,
    Piece,
    Source,
    active_level,
    read_audio,
    stereo,
)
from training.corpus.recorded.teacher import LICENCE, VERSION, Teacher, weight_files

FRAME = SAMPLE_RATE // 2  # samples that are judged together
SUNG_SHARE = 0.1  # of the energy, at least, that is the voice's where it is clear
SUNG_CLARITY = 0.85  # measured on album stems: the voice kept is 1 to 3 dB cleaner than the whole
SUNG_SHORTEST = 1.5  # s
BELOW_VOICE = 12  # dB: what lies further below the song's voice is not sung clearly
UNSUNG_SHARE = 0.003  # of the energy, at most, where nobody sings
UNSUNG_SHORTEST = 4.0  # s
SETTINGS = {"gates": [SUNG_SHARE, SUNG_CLARITY, SUNG_SHORTEST, UNSUNG_SHARE, UNSUNG_SHORTEST]}


@dataclasses.dataclass(frozen=True)
class Hearing:
    """What the teacher made of a song, by frames of FRAME samples: (frames,) each."""

    voice: NDArray[np.float64]  # mean power of its estimate of the voice
    song: NDArray[np.float64]  # mean power
    agreement: NDArray[np.float64]  # mean product of the two: the song's power weighted with the mask

    @property
    def share(self) -> NDArray[np.float64]:
        """The voice's part of the energy."""
        return self.voice / (self.song + 1e-9)

    @property
    def clarity(self) -> NDArray[np.float64]:
        """Mean of the mask where the voice is: 1 for a voice alone in its bins, low for bleed."""
        return self.voice / (self.agreement + 1e-9)


def hearing(song: Audio, voice: Audio) -> Hearing:
    """Measure two (n, 2) signals of the same length; the rest after the last whole frame is left out."""
    count = len(song) // FRAME

    def power(a: Audio, b: Audio) -> NDArray[np.float64]:
        product = a[: count * FRAME] * b[: count * FRAME]
        return np.asarray(product.reshape(count, -1).mean(axis=1, dtype=np.float64))

    return Hearing(power(voice, voice), power(song, song), power(voice, song))


def sung_frames(heard: Hearing) -> NDArray[np.bool_]:
    """Where a voice is heard clearly."""
    clear = (heard.share > SUNG_SHARE) & (heard.clarity > SUNG_CLARITY)
    if not clear.any():
        return clear
    loud = 10 ** (-BELOW_VOICE / 10) * np.percentile(heard.voice[clear], 75)
    return np.asarray(clear & (heard.voice > max(loud, 1e-5)))


def stretches(on: NDArray[np.bool_], *, shortest: float) -> Iterator[tuple[int, int]]:
    """Sample ranges of consecutive frames that are on, of at least `shortest` s."""
    frames = np.flatnonzero(on)
    for group in np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1) if len(frames) else []:
        if (group[-1] + 1 - group[0]) * FRAME >= shortest * SAMPLE_RATE:
            yield int(group[0]) * FRAME, int(group[-1] + 1) * FRAME


@lru_cache(maxsize=1)
def teacher_of(files: tuple[str, ...]) -> Teacher:
    """One teacher a process."""
    return Teacher(files)


def judged(source: Source) -> Iterator[tuple[str, Audio, Audio, Hearing]]:
    """Name, song, its voice and what was heard; the weights are the source's first two files."""
    teacher = teacher_of(source.files[:2])
    for name in source.files[2:]:
        song = stereo(read_audio(name))
        voice = teacher.vocals(song)
        yield Path(name.split(ARCHIVE_MARK)[-1]).name, song, voice, hearing(song, voice)


def pseudo_vocals(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The teacher's estimate of the voice where it is clear, one level a song; (n, 2)."""
    fade = np.linspace(0, 1, SAMPLE_RATE // 50, dtype=np.float32)[:, None]
    for name, _, voice, heard in judged(source):
        pieces = [(s, voice[s:e].copy()) for s, e in stretches(sung_frames(heard), shortest=SUNG_SHORTEST)]
        if not pieces:
            continue
        gain = 10 ** ((-20 - active_level(np.concatenate([p for _, p in pieces]))) / 20)
        for start, piece in pieces:
            piece[: len(fade)] *= fade
            piece[-len(fade) :] *= fade[::-1]
            loudest = float(np.abs(piece).max())
            yield Piece(piece * min(gain, 0.98 / loudest), f"{name}@{start}")


def pseudo_accompaniment(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The recording itself where nobody sings, levels as recorded; (n, 2)."""
    for name, song, _, heard in judged(source):
        quiet = (heard.share < UNSUNG_SHARE) & (heard.song > 1e-5)
        for start, end in stretches(quiet, shortest=UNSUNG_SHORTEST):
            piece = song[start:end]
            yield Piece(piece / max(1.0, float(np.abs(piece).max()) / 0.98), f"{name}@{start}")


def pseudo_song(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The whole voice of one song, or what the estimate leaves of the song (settings["stem"]); (n, 2)."""
    for name, song, voice, _ in judged(source):
        yield Piece(voice if source.settings["stem"] == "vocals" else song - voice, name)


def pseudo_sources(debian: Path, weights: Path) -> list[Source]:
    """For every package with a singer: its voice, its music where nobody sings, and two stems a song.

    Raises ValueError when the teacher's weights are not there.
    """
    teacher = weight_files(weights)
    found = []
    for package, (singers, terms) in WITH_SINGER.items():
        root = debian / package
        songs = tuple(f for f in audio_files(root) if MUSIC_FOLDER.search(f)) if root.is_dir() else ()
        if not songs:
            continue
        licence, kind, version = package_terms(root, {package: terms})
        extra = {"teacher": f"{VERSION}, {LICENCE}"}
        name = f"pseudo-{package.removesuffix('-data')}"
        about = (f"{licence}; pseudo-stem by {LICENCE}", kind, f"{version}, {VERSION}")
        files = (*teacher, *songs)
        found += [
            Source(
                "vocals",
                name,
                *about,
                "pseudo_vocals",
                files,
                SETTINGS,
                {**extra, "voice": "song", "speakers": singers},
            ),
            Source("accompaniment", name, *about, "pseudo_accompaniment", files, SETTINGS, extra),
        ]
        for song in songs:
            if (title := Path(song).stem) not in SUNG_THROUGHOUT:
                continue
            for stem in ("vocals", "other"):  # the latter stands for all that is no voice
                row = {**extra, "song": title, "stem": stem, "masked": ["drums", "bass", "other"]}
                one = (*teacher, song)
                found.append(
                    Source("song", f"{title}.{stem}", *about, "pseudo_song", one, {"stem": stem}, row)
                )
    return found
