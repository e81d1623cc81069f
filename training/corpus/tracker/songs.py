"""Tracker modules from Debian games as songs of the corpus: drums, bass and other, rendered separately.

module_parts.tsv, written by find_parts.py, assigns the instruments. There are no vocals: the mixer adds a voice.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tfswa_sep.audio.atomic_file import write_text
from training.corpus import BAND
from training.corpus.recorded.catalogue import package_terms
from training.corpus.recorded.sources import Piece, Source, active_level, read_tsv
from training.corpus.tracker import tracker

MODULE_PARTS = Path(__file__).with_name("module_parts.tsv")
Parts = dict[str, tuple[int, ...]]  # stem -> instruments of a module, from 0
Row = tuple[str, str, float, Parts]  # package, file, seconds, parts

# Package: the terms of its modules. Only packages whose copyright file or credits name the composers, or whose modules
# say that they were made for the game: many others (gltron, gweled, madbomber, open-invaders, rafkill and more) ship
# modules found elsewhere, which the licences of the games do not cover.
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
EXCLUDED = {"zb-tnt.xm", "cinderella_clown.mod", "mario_is_a_weenie.xm", "slice_me_nice.xm"}  # of bomberclone
MODULE = re.compile(r"\.(mod|s3m|stm|xm|it)$", re.I)
MAX_SECONDS = 240.0  # of a module
LEVEL, PEAK = -17.0, 0.98  # active level of a song in dBFS, and its maximum peak


def find_modules(package: Path) -> list[str]:
    """Paths of files that may be modules, relative to the package's folder."""
    files = (
        p for p in package.rglob("*") if MODULE.search(p.name) and p.name not in EXCLUDED and p.is_file()
    )
    return sorted(str(p.relative_to(package)) for p in files)


def write_parts(path: Path, rows: Iterable[Row]) -> None:
    """Write the table: package, file, seconds, and the instruments of each part, numbered from 1 as in trackers."""
    lines = ["\t".join(("package", "file", "seconds", *BAND))]
    for package, file, seconds, parts in rows:
        numbers = (" ".join(str(i + 1) for i in parts[part]) for part in BAND)
        lines.append("\t".join((package, file, f"{seconds:.0f}", *numbers)))
    write_text(path, "\n".join(lines) + "\n")


def tracker_sources(debian: Path) -> list[Source]:
    """Three sources for each song in the table whose package is unpacked; none without libopenmpt."""
    sources: list[Source] = []
    for row in read_tsv(MODULE_PARTS) if tracker.is_installed() else []:
        file = debian / row["package"] / row["file"]
        if not file.is_file():
            continue
        terms = package_terms(debian / row["package"], MODULE_PACKAGES)
        song = f"{row['package'].removesuffix('-data')}-{file.name}"
        parts = {part: [int(i) - 1 for i in row[part].split()] for part in BAND}
        seconds = min(float(row["seconds"]), MAX_SECONDS)
        for part in BAND:
            settings = {"seconds": seconds, "stem": part, "parts": parts}
            extra = {"song": song, "stem": part}
            name = f"{song}.{part}"
            sources.append(Source("band", name, *terms, "tracker_stem", (str(file),), settings, extra))
    return sources


def render_tracker_stem(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """One part of a module, (n, 2), at its level in the song, which has an active level of LEVEL or peaks at PEAK."""
    content, parts = Path(source.files[0]).read_bytes(), source.settings["parts"]
    seconds = source.settings["seconds"]
    stems = {p: tracker.play(content, seconds=seconds, instruments=parts[p]) for p in BAND}
    song = np.sum(list(stems.values()), axis=0)
    peak = max(float(np.abs(audio).max()) for audio in (song, *stems.values()))
    gain = min(10 ** ((LEVEL - active_level(song)) / 20), PEAK / peak)
    stem = stems[source.settings["stem"]]
    yield Piece(stem * np.float32(gain), Path(source.files[0]).name)
