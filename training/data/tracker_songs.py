"""Songs of the corpus that are tracker modules of Debian's games: drums, bass and other, each played apart.

parts_found.tsv says which instruments are which (find_parts.py wrote it). Nobody sings: mix.py adds a voice.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from training.data import tracker
from training.data.catalogue import package_terms
from training.data.sources import SAMPLE_RATE, Piece, Source, active_level, read_tsv

PARTS = ("drums", "bass", "other")
PARTS_FOUND = Path(__file__).with_name("parts_found.tsv")
Parts = dict[str, tuple[int, ...]]  # instruments of a module, from 0 on, by stem

# Left out: gemdropx (its music is not free), freedroid (arrangements of other games' music), and tuxtype and
# tuxmath, which say little about theirs.
PACKAGES = (
    "ballz-data", "biniax2-data", "black-box", "bomberclone-data", "bugsquish", "ceferino-data",
    "circuslinux-data", "criticalmass-data", "cuyo-data", "dodgindiamond2", "fb-music-high", "flobopuyo",
    "gl-117-data", "gltron", "gweled", "heroes-sound-tracks", "madbomber-data", "monsterz-data", "njam-data",
    "open-invaders-data", "pachi-data", "pathogen", "pekka-kana-2-data", "penguin-command", "pingus-data",
    "rafkill-data", "redeclipse-data", "ri-li-data", "rockdodger", "solarwolf", "tecnoballz-data",
    "tomatoes-data", "vectoroids", "vodovod",
)  # fmt: skip
MODULE = re.compile(r"\.(mod|s3m|stm|xm|it)$", re.I)
SONG_SECONDS = 240.0  # of a module, at most
LEVEL, PEAK = -17.0, 0.98  # dBFS while it plays, and the highest that a song may reach


def modules_of(package: Path) -> list[str]:
    """Names, from the package's folder on, of what may be modules."""
    return sorted(str(p.relative_to(package)) for p in package.rglob("*") if MODULE.search(p.name))


def write_parts(path: Path, rows: Iterable[tuple[str, str, float, Parts]]) -> None:
    """Write the table: package, file, seconds, and the instruments of each part, from 1 on as trackers do."""
    lines = ["\t".join(("package", "file", "seconds", *PARTS))]
    for package, file, seconds, parts in rows:
        numbers = (" ".join(str(i + 1) for i in parts[part]) for part in PARTS)
        lines.append("\t".join((package, file, f"{seconds:.0f}", *numbers)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
        terms = package_terms(debian / row["package"], {})
        song = f"{row['package'].removesuffix('-data')}-{file.name}"
        parts = {part: [int(i) - 1 for i in row[part].split()] for part in PARTS}
        seconds = min(float(row["seconds"]), SONG_SECONDS)
        for part in PARTS:
            settings = {"seconds": seconds, "stem": part, "parts": parts}
            extra = {"song": song, "stem": part}
            name = f"{song}.{part}"
            found.append(Source("band", name, *terms, "tracker_stem", (str(file),), settings, extra))
    return found


def tracker_stem(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """One part of a module, (n, 2), at its own level in the song, which is at LEVEL without passing PEAK."""
    content, parts = Path(source.files[0]).read_bytes(), source.settings["parts"]
    seconds = source.settings["seconds"]
    stems = {p: tracker.play(content, seconds=seconds, instruments=parts[p]) for p in PARTS}
    song = np.sum(list(stems.values()), axis=0)
    peak = max(float(np.abs(audio).max()) for audio in (song, *stems.values()))
    gain = min(10 ** ((LEVEL - active_level(song)) / 20), PEAK / peak)
    stem = stems[source.settings["stem"]]
    yield Piece(stem[: round(seconds * SAMPLE_RATE)] * np.float32(gain), Path(source.files[0]).name)
