"""Tracker modules from Debian games as songs of the corpus: drums, bass and other, rendered separately.

parts_found.tsv, written by find_parts.py, assigns the instruments. There are no vocals: the mixer adds a voice.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tfswa_sep.audio.atomic_file import atomic_write
from training.corpus import BAND
from training.corpus.recorded.catalogue import package_terms
from training.corpus.recorded.sources import Piece, Source, active_level, read_tsv
from training.corpus.tracker import tracker

PARTS_FOUND = Path(__file__).with_name("parts_found.tsv")
Parts = dict[str, tuple[int, ...]]  # instruments of a module, from 0 on, by stem
Row = tuple[str, str, float, Parts]  # package, file, seconds, parts

# Package: the terms of its modules. Only packages whose composers their copyright file or credits name, or
# whose modules say that they were made for the game: many other games come with what somebody once found
# (gltron, gweled, madbomber, open-invaders, rafkill and more), and their licence is not the composers'.
MODULE_PACKAGES = {
    "biniax2-data": "Zlib",
    "bomberclone-data": "GPL-2",
    "circuslinux-data": "GPL",
    "dodgindiamond2": "GPL-2+",
    "fb-music-high": "GPL-2",
    "heroes-sound-tracks": "GPL-2+",
    "monsterz-data": "public domain",
    "njam-data": "GPL-2+",
    "pekka-kana-2-data": "BSD-2-Clause",
    "pingus-data": "GPL-2+",
    "ri-li-data": "GPL-2 or GPL-3",
    "tecnoballz-data": "GPL-3+",
    "tomatoes-data": "Zlib",
}
LEFT_OUT = {"zb-tnt.xm", "cinderella_clown.mod", "mario_is_a_weenie.xm", "slice_me_nice.xm"}  # of bomberclone
MODULE = re.compile(r"\.(mod|s3m|stm|xm|it)$", re.I)
SONG_SECONDS = 240.0  # of a module, at most
LEVEL, PEAK = -17.0, 0.98  # dBFS while it plays, and the highest that a song may reach


def modules_of(package: Path) -> list[str]:
    """Names, from the package's folder on, of what may be modules."""
    files = (
        p for p in package.rglob("*") if MODULE.search(p.name) and p.name not in LEFT_OUT and p.is_file()
    )
    return sorted(str(p.relative_to(package)) for p in files)


def write_parts(path: Path, rows: Iterable[Row]) -> None:
    """Write the table: package, file, seconds, and the instruments of each part, from 1 on as trackers do."""
    lines = ["\t".join(("package", "file", "seconds", *BAND))]
    for package, file, seconds, parts in rows:
        numbers = (" ".join(str(i + 1) for i in parts[part]) for part in BAND)
        lines.append("\t".join((package, file, f"{seconds:.0f}", *numbers)))
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def missing_player() -> list[str]:
    """The Debian package that plays modules, if it is not there."""
    return [] if tracker.installed() else [tracker.LIBRARY]


def tracker_sources(debian: Path) -> list[Source]:
    """Three sources for each song of the table whose package is there; none where nothing can play them."""
    found: list[Source] = []
    for row in [] if missing_player() else read_tsv(PARTS_FOUND):
        file = debian / row["package"] / row["file"]
        if not file.is_file():
            continue
        terms = package_terms(debian / row["package"], MODULE_PACKAGES)
        song = f"{row['package'].removesuffix('-data')}-{file.name}"
        parts = {part: [int(i) - 1 for i in row[part].split()] for part in BAND}
        seconds = min(float(row["seconds"]), SONG_SECONDS)
        for part in BAND:
            settings = {"seconds": seconds, "stem": part, "parts": parts}
            extra = {"song": song, "stem": part}
            name = f"{song}.{part}"
            found.append(Source("band", name, *terms, "tracker_stem", (str(file),), settings, extra))
    return found


def tracker_stem(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """One part of a module, (n, 2), at its own level in the song, which is at LEVEL without passing PEAK."""
    content, parts = Path(source.files[0]).read_bytes(), source.settings["parts"]
    seconds = source.settings["seconds"]
    stems = {p: tracker.play(content, seconds=seconds, instruments=parts[p]) for p in BAND}
    song = np.sum(list(stems.values()), axis=0)
    peak = max(float(np.abs(audio).max()) for audio in (song, *stems.values()))
    gain = min(10 ** ((LEVEL - active_level(song)) / 20), PEAK / peak)
    stem = stems[source.settings["stem"]]
    yield Piece(stem * np.float32(gain), Path(source.files[0]).name)
