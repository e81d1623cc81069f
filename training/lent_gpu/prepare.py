"""Here: pack the corpus into pieces that a call can carry: `python -m training.lent_gpu.prepare`.

Every source is cut into helpings of a minute or so; the stems of a song stay together. The first helping of
every source comes before the second of any: variety before minutes. Among them the pools take turns, so that
training can start on the first piece; the smaller a pool's number in TURNS, the sooner it is through. Written
as Opus.

    OUT/encoded/             every helping, once; a second run goes on where the first stopped
    OUT/piece-1/piece.json   a row a helping: what the manifest says, its file, the lengths of its segments
    OUT/piece-1/*.opus
    OUT/piece-1/valid/       an excerpt of every validation song
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from rich.progress import Progress

from tfswa_sep.audio.atomic_file import atomic_write
from training.corpus.recorded.sources import SAMPLE_RATE, Audio, read_audio

OPUS_RATE = 48_000  # Hz
# Real songs and voices are what the corpus is short of; of rendered bands there are more than can travel.
TURNS = {
    "song": 0.6, "vocals": 0.4, "accompaniment": 0.4, "other": 0.2, "drums": 0.2, "bass": 0.2, "band": 3.0,
}  # fmt: skip
HELPING = 45 * SAMPLE_RATE  # samples after which a helping ends
VALID_SECONDS = (20, 60)  # of each validation song
BITRATE = 56  # kbit/s a channel


@dataclasses.dataclass(frozen=True)
class Helping:
    """Some minutes of a source: its row in the manifest, the number of the helping, sample ranges."""

    row: dict[str, Any]
    number: int
    segments: list[tuple[int, int]]

    @property
    def file(self) -> str:
        """Its name in a piece; another build's array gives another name."""
        return f"{self.row['pool']}.{self.row['source']}.{self.number}.{self.row['fingerprint'][:6]}.opus"


def helpings(row: dict[str, Any]) -> list[Helping]:
    """A source cut after the segment that fills HELPING, long ones cut too; a song's one stays whole."""
    found: list[list[tuple[int, int]]] = []
    filled = HELPING
    segments: list[tuple[int, int]] = row["segments"]
    if "song" not in row:
        segments = [
            (begin, min(begin + HELPING, end))
            for start, end in segments
            for begin in range(start, end, HELPING)
        ]
    for start, end in segments:
        if filled >= HELPING:
            found.append([])
            filled = 0
        found[-1].append((start, end))
        filled += end - start
    return [Helping(row, number, segments) for number, segments in enumerate(found)]


def in_turns(rows: Iterable[dict[str, Any]]) -> list[list[Helping]]:
    """What travels together, best first: the stems of a song, or one helping of a source."""
    groups: dict[tuple[int, str, str], list[Helping]] = {}
    for row in rows:
        for helping in helpings(row):
            name = row.get("song", row["source"])
            groups.setdefault((helping.number, row["pool"], name), []).append(helping)
    rounds: dict[tuple[int, str], list[list[Helping]]] = {}
    for (number, pool, _), group in groups.items():
        rounds.setdefault((number, pool), []).append(group)
    ranked = [
        (number, TURNS[pool] * (place + 0.5) / len(found), group)
        for (number, pool), found in rounds.items()
        for place, group in enumerate(found)
    ]
    return [group for _, _, group in sorted(ranked, key=lambda each: each[:2])]


def write_opus(path: Path, audio: Audio) -> None:
    """Write (n, c) at 44.1 kHz; the file appears under its name when it is whole."""
    resampled = soxr.resample(audio, SAMPLE_RATE, OPUS_RATE)
    level = 1 - (BITRATE - 6) / 250  # libsndfile's scale of 6 to 256 kbit/s a channel
    with (
        atomic_write(path) as temporary,
        soundfile.SoundFile(
            temporary, "w", OPUS_RATE, audio.shape[1], format="OGG", subtype="OPUS", compression_level=level
        ) as f,
    ):
        for start in range(0, len(resampled), OPUS_RATE):  # libsndfile fails on very long writes
            f.write(np.clip(resampled[start : start + OPUS_RATE], -1, 1))


def encode(helping: Helping, pools: Path, folder: Path) -> Path:
    """The helping's Opus file in `folder`, made if it is not there."""
    path = folder / helping.file
    if not path.is_file():
        samples: NDArray[np.int16] = np.load(pools / helping.row["array"], mmap_mode="r")
        parts = [samples[start:end] for start, end in helping.segments]
        write_opus(path, (np.concatenate(parts) / 32768).astype(np.float32))
    return path


def row_of(helping: Helping) -> dict[str, Any]:
    """What a piece says of a helping: the manifest's row without labels and samples."""
    left_out = ("segments", "labels", "array", "seconds_to_build")
    row = {key: value for key, value in helping.row.items() if key not in left_out}
    lengths = [end - start for start, end in helping.segments]
    return row | {"number": helping.number, "file": helping.file, "lengths": lengths}


def valid_excerpts(songs: Path, folder: Path) -> None:
    """Write an excerpt of every stem of every song in `songs`, as Opus, into `folder`.

    All stems of a song are cut at one place: at VALID_SECONDS, or from the beginning where one ends before.
    """
    first, last = VALID_SECONDS
    for song in sorted(path for path in songs.iterdir() if path.is_dir()):
        paths = sorted(path for path in song.iterdir() if path.suffix in (".wav", ".flac", ".opus"))
        shortest = min((soundfile.info(path).duration for path in paths), default=0.0)
        start = first * SAMPLE_RATE if shortest > last else 0
        for path in paths:
            target = folder / song.name / f"{path.stem}.opus"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_opus(target, read_audio(str(path))[start : start + (last - first) * SAMPLE_RATE])


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pack(
    rows: Iterable[dict[str, Any]], pools: Path, out: Path, *, pieces: int, most: int, valid: Path | None
) -> list[float]:
    """Fill pieces of at most `most` bytes in the order of rank. Returns the minutes in each of them.

    Raises ValueError when one song or helping alone, or the validation songs, fill more than a piece.
    """
    for old in out.glob("piece-*"):
        shutil.rmtree(old)
    (out / "encoded").mkdir(parents=True, exist_ok=True)
    ranked = in_turns(rows)
    minutes: list[float] = []
    contents: list[dict[str, Any]] = []
    filled = most

    def close() -> None:
        if contents:
            (out / f"piece-{len(minutes)}/piece.json").write_text(json.dumps(contents))
            contents.clear()

    with Progress() as progress:
        for group in progress.track(ranked, description="encoding"):
            paths = [encode(helping, pools, out / "encoded") for helping in group]
            found = [row_of(helping) for helping in group]
            needed = sum(path.stat().st_size + 4096 for path in paths) + len(json.dumps(found))
            if filled + needed > most:
                close()
                if len(minutes) == pieces:
                    break
                folder = out / f"piece-{len(minutes) + 1}"
                folder.mkdir()
                if valid and not minutes:
                    valid_excerpts(valid, folder / "valid")
                minutes.append(0.0)
                filled = size(folder)
                if filled + needed > most:
                    raise ValueError(f"{group[0].file} does not fit into a piece of {most / 2**20:.0f} MiB")
            for path in paths:
                os.link(path, folder / path.name)
            contents += found
            minutes[-1] += sum(sum(row["lengths"]) for row in found) / SAMPLE_RATE / 60
            filled += needed
    close()
    return minutes


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.lent_gpu.prepare", description="Pack the corpus for a lent GPU."
    )
    parser.add_argument("--pools", type=Path, required=True, help="what training.corpus.build wrote")
    parser.add_argument("--valid", type=Path, help="folder of songs with stems")
    parser.add_argument("--out", type=Path, default=Path(".lent"), help="an ignored folder of the checkout")
    parser.add_argument("--pieces", type=int, default=6)
    parser.add_argument("--mib", type=float, default=22, help="of a piece: 64 less the tree and the wheels")
    options = parser.parse_args(arguments)
    manifest = options.pools / "manifest.json"
    if not manifest.is_file():
        parser.error(f"{manifest} is not there: build the corpus first (training/corpus/README.md)")
    rows = json.loads(manifest.read_text(encoding="utf-8"))["sources"]
    rows = [row for row in rows if row["pool"] in TURNS]  # rests are parts of the accompaniment
    most = int(options.mib * 2**20)
    try:
        packed = pack(rows, options.pools, options.out, pieces=options.pieces, most=most, valid=options.valid)
    except ValueError as error:
        parser.error(str(error))
    for number, minutes in enumerate(packed, start=1):
        folder = options.out / f"piece-{number}"
        print(f"{folder}: {minutes:.0f} min, {size(folder) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
