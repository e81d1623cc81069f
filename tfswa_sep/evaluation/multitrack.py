"""Songs with true stems, and reading several files in parallel.

    FOLDER/<song>/<stem>.<wav|flac|opus|ogg|mp3>      stems of any name, such as vocals or guitar
    FOLDER/<song>.stem.mp4                            drums, bass, other and vocals, as in MUSDB18

A stem without a file is silent if other songs have it or it is one of MUSDB18's. The mixture is `mixture.*`, else
the sum of the stems; the mixture inside a `.stem.mp4` is not used, since it was encoded separately.
Everything is read as stereo in blocks, so memory does not grow with the song.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import soundfile

from tfswa_sep.audio.decode import open_audio
from tfswa_sep.audio.reblock import BlockReader
from tfswa_sep.audio.resample import Samples
from tfswa_sep.constants import ACCOMPANIMENT, INSTRUMENTAL, MODEL_CHANNELS, SAMPLE_RATE, STEMS, VOCALS
from tfswa_sep.errors import InputError, TruncatedError, UsageError

MIXTURE = "mixture"
PACKED_SUFFIX = ".stem.mp4"
AUDIO_SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".mp3")
BLOCK_SECONDS = 10  # read at a time


@dataclass(frozen=True)
class Song:
    """A song with known true stems."""

    name: str
    files: dict[str, Path]  # stem or "mixture" -> file
    packed: Path | None = None  # .stem.mp4 that musdb.decode_stems turns into such files
    summed: bool = False  # the mixture is the sum of the stems, even if one is packed with them
    stems: tuple[str, ...] = STEMS  # that it consists of, including silent ones

    def truths(self, rate: int) -> dict[str, Feed]:
        """A feed for each of its stems, including silent ones."""
        return {stem: Feed([self.files[stem]] if stem in self.files else [], rate) for stem in self.stems}

    def write_mixture(self, path: Path, *, rate: int) -> int:
        """Write the mixture as 32-bit float WAV, which does not clip; return its length in frames."""
        stems = [self.files[stem] for stem in self.stems if stem in self.files]
        feed, written = Feed([self.files[MIXTURE]] if MIXTURE in self.files else stems, rate), 0
        with soundfile.SoundFile(path, "w", rate, MODEL_CHANNELS, subtype="FLOAT", format="WAV") as target:
            while not feed.ended:
                block = feed.take(BLOCK_SECONDS * rate)[:, : feed.frames - written]
                target.write(block.T)
                written += block.shape[1]
        return written


def find_songs(data: Path) -> list[Song]:
    """Find songs: the folders in `data`, its `.stem.mp4` files, and `data` itself.

    A folder is a song if it holds one of MUSDB18's stems or an accompaniment, or, below `data`, several stems of
    any names. An accompaniment is ignored beside the stems that it is the sum of.

    Raises:
        InputError: There are no songs, or two of the same name.
    """
    if not data.is_dir():
        raise InputError(f"{data} is not a folder of songs")
    folders = [data, *sorted(folder for folder in data.iterdir() if folder.is_dir())]
    candidates = [(folder, stem_files(folder)) for folder in folders]
    songs = [
        Song(folder.resolve().name, files)
        for folder, files in candidates
        if files.keys() & {*STEMS, ACCOMPANIMENT} or (folder != data and len(files.keys() - {MIXTURE}) > 1)
    ]
    songs += [
        Song(path.name.removesuffix(PACKED_SUFFIX), {}, packed=path, summed=True)
        for path in packed_songs(data)
    ]
    if not songs:
        raise InputError(
            f"no songs in {data}: expected folders with files such as vocals.wav or drums.flac, or .stem.mp4 files"
        )
    names = [song.name for song in songs]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two songs in {data} are called {repeated.pop()!r}: rename one")
    named = {stem for song in songs for stem in song.files} - {MIXTURE, ACCOMPANIMENT}
    if any(song.packed for song in songs) or named <= set(STEMS):
        named |= set(STEMS)
    ordered = [stem for stem in STEMS if stem in named] + sorted(named - set(STEMS))
    return [replace(song, stems=_stems(song, ordered)) for song in songs]


def _stems(song: Song, named: Sequence[str]) -> tuple[str, ...]:
    """The stems that a song consists of; `named` are those of all songs."""
    parts = song.files.keys() - {MIXTURE, ACCOMPANIMENT, VOCALS}
    return (VOCALS, ACCOMPANIMENT) if ACCOMPANIMENT in song.files and not parts else tuple(named)


def packed_songs(folder: Path) -> list[Path]:
    """The `.stem.mp4` files in `folder`, sorted, without subfolders."""
    return sorted(path for path in folder.glob(f"*{PACKED_SUFFIX}") if not path.name.startswith("."))


def names_without(names: Iterable[str], pattern: str | None) -> set[str]:
    """The names that do not match `pattern`, a glob; None means all.

    Raises:
        UsageError: The pattern matches no song, or every song.
    """
    given = set(names)
    kept = {name for name in given if pattern is None or not fnmatchcase(name, pattern)}
    if pattern is not None and len(kept) in (0, len(given)):
        which = "no song matches" if kept else "every song matches"
        raise UsageError(f"{which} the exclusion pattern {pattern!r}")
    return kept


def stem_files(folder: Path) -> dict[str, Path]:
    """{stem or "mixture": audio file} of one song, in lower case; "instrumental" is the accompaniment.

    Raises:
        InputError: Two files are of the same stem.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in AUDIO_SUFFIXES or path.name.startswith("."):
            continue
        stem = path.stem.lower()
        stem = ACCOMPANIMENT if stem == INSTRUMENTAL else stem
        if stem in files:
            raise InputError(f"{path} and {files[stem].name} are the same stem: remove one")
        files[stem] = path
    return files


class Feed:
    """The sum of files as stereo blocks of any size, followed by silence; without files, silence."""

    def __init__(self, paths: list[Path], rate: int) -> None:
        self._sources = [BlockReader(_blocks(path, rate), MODEL_CHANNELS) for path in paths]

    def take(self, frames: int) -> Samples:
        """The next samples, (MODEL_CHANNELS, frames).

        Raises:
            InputError: As `decode.open_audio`.
        """
        total = np.zeros((MODEL_CHANNELS, frames), dtype=np.float32)
        for source in self._sources:
            total += source.read(frames)
        return total

    @property
    def frames(self) -> int:
        """Frames of the longest file decoded so far; its length once it has ended."""
        return max((source.frames for source in self._sources), default=0)

    @property
    def ended(self) -> bool:
        """Whether only silence is left."""
        return all(source.ended for source in self._sources)

    def drain(self) -> int:
        """Decode the rest to learn its length; return `frames`."""
        while not self.ended:
            self.take(BLOCK_SECONDS * SAMPLE_RATE)
        return self.frames


def _blocks(path: Path, rate: int) -> Iterator[Samples]:
    try:
        with open_audio(path) as reader:
            yield from reader.blocks(rate, MODEL_CHANNELS)
    except TruncatedError as error:  # whose advice is --allow-truncated, which does not exist here
        raise TruncatedError(f"{str(error).rpartition(': ')[0]}: copy or download it again") from None
