"""Find where drums or bass rest in mixed music: `python -m training.corpus.find_rests --pools POOLS
--scan FOLDER`.

The bundled model takes every piece of the pool apart; a stem rests where its estimate stays REST_DB below the
music, second by second, for rests.SHORTEST or longer. FOLDER keeps the energies of a source a file and is
gone on with, so that a scan can be stopped at any time. What rests goes into rests_found.tsv beside this
module, which the build reads. Taught by a model's own estimates it can learn nothing that it did not hear,
but it has to find the same silence again with a voice, other drums or another bass on top.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from tfswa_sep import Separator
from tfswa_sep.audio.atomic_file import atomic_write
from training.corpus.manifest import read_manifest
from training.corpus.recorded.sources import SAMPLE_RATE
from training.corpus.rests import RESTS_FOUND, SHORTEST, Spans

STEMS = ("drums", "bass")  # that can rest
REST_DB = -25.0  # of the music's energy, at most, that is a resting stem's
AUDIBLE_DB = -45.0  # of full scale, at least, where music plays at all
COLUMNS = ("source", "piece", "stem", "spans")

Energy = NDArray[np.float64]  # (seconds, 3): drums, bass and the music, mean power


def energies(separator: Separator, samples: NDArray[np.int16]) -> Energy:
    """What a piece (n, c) holds second by second; the rest after the last whole second is left out."""
    music = np.ascontiguousarray(samples.T, np.float32) / 32767
    seconds = music.shape[1] // SAMPLE_RATE
    stems = separator.separate(music, SAMPLE_RATE)

    def power(audio: NDArray[np.floating[Any]]) -> Energy:
        whole = audio[:, : seconds * SAMPLE_RATE].reshape(len(audio), seconds, SAMPLE_RATE)
        return np.asarray(np.square(whole).mean(axis=(0, 2), dtype=np.float64))

    return np.stack([*(power(stems[stem]) for stem in STEMS), power(music)], axis=1)


def spans_of(energy: Energy, stem: str) -> Spans:
    """Where a stem rests while music plays, in whole seconds."""
    music = energy[:, -1]
    rests = (energy[:, STEMS.index(stem)] < music * 10 ** (REST_DB / 10)) & (music > 10 ** (AUDIBLE_DB / 10))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], rests, [0]]).astype(int)))
    spans = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(begin, end) for begin, end in spans if end - begin >= SHORTEST]


def scan(separator: Separator, row: dict[str, Any], pools: Path, path: Path) -> None:
    """Write the energies of a source's pieces, one after the other, and how many seconds each has."""
    samples = np.load(pools / row["array"], mmap_mode="r")
    found = [energies(separator, samples[start:end]) for start, end in row["segments"]]
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, energy=np.concatenate(found), seconds=[len(each) for each in found])


def table(rows: list[dict[str, Any]], folder: Path) -> Iterator[tuple[str, ...]]:
    """A row of COLUMNS for every piece and stem that rests in it."""
    for row in rows:
        with np.load(folder / f"{row['source']}.npz") as found:
            parts = np.split(found["energy"], np.cumsum(found["seconds"])[:-1])
        for piece, energy in zip(row["labels"], parts, strict=True):
            if row["labels"].count(piece) > 1:
                continue  # the table could not tell one from the other
            for stem in STEMS:
                if spans := spans_of(energy, stem):
                    yield row["source"], piece, stem, " ".join(f"{begin}-{end}" for begin, end in spans)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus.find_rests", description="Find where drums or bass rest."
    )
    parser.add_argument("--pools", type=Path, required=True, help="what training.corpus.build wrote")
    parser.add_argument("--scan", type=Path, required=True, help="folder of the energies; gone on with")
    parser.add_argument("--model", default="small", help="name or file of the model that listens")
    parser.add_argument("--out", type=Path, default=RESTS_FOUND, help="table of the rests")
    options = parser.parse_args(arguments)
    rows = [row for row in read_manifest(options.pools).values() if row["pool"] == "accompaniment"]
    if not rows:
        parser.error(f"{options.pools} holds no accompaniment: build the corpus first")
    rows.sort(key=lambda row: str(row["source"]))
    options.scan.mkdir(parents=True, exist_ok=True)
    separator = Separator(options.model, precision="int8")  # as the committed table was made
    with Progress() as progress:
        for row in progress.track(rows, description="sources"):
            path = options.scan / f"{row['source']}.npz"
            if not path.is_file():
                scan(separator, row, options.pools, path)
    lines = ["\t".join(line) for line in (COLUMNS, *table(rows, options.scan))]
    with atomic_write(options.out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines) - 1} rests in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
