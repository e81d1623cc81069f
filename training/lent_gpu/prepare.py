"""Here: pack the corpus into pieces that a call can carry: `python -m training.lent_gpu.prepare`.

Every source is cut into helpings of a few minutes, whole segments each. The songs come first, then the first
helping of every source, voices before instrumentals before renders, then the second ones, and so on:
variety before minutes, and training can start on the first piece. Written as Opus.

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

from tfswa_sep.temporary import written_whole
from training.data.sources import SAMPLE_RATE, Audio, read_audio

OPUS_RATE = 48_000  # Hz
RANKS = ("song", "band", "vocals", "accompaniment", "other", "drums", "bass")
HELPING = 4 * 60 * SAMPLE_RATE  # samples after which a helping ends
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

    @property
    def rank(self) -> tuple[int, int]:
        """What comes first when sorted."""
        return (-1, 0) if self.row["pool"] == "song" else (self.number, RANKS.index(self.row["pool"]))


def helpings(row: dict[str, Any]) -> list[Helping]:
    """A source cut after the segment that fills HELPING; a song's one segment stays whole."""
    found: list[list[tuple[int, int]]] = []
    filled = HELPING
    for start, end in row["segments"]:
        if filled >= HELPING:
            found.append([])
            filled = 0
        found[-1].append((start, end))
        filled += end - start
    return [Helping(row, number, segments) for number, segments in enumerate(found)]


def write_opus(path: Path, audio: Audio) -> None:
    """Write (n, c) at 44.1 kHz; the file appears under its name when it is whole."""
    resampled = soxr.resample(audio, SAMPLE_RATE, OPUS_RATE)
    level = 1 - (BITRATE - 6) / 250  # libsndfile's scale of 6 to 256 kbit/s a channel
    with (
        written_whole(path) as temporary,
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
    """Write an excerpt of every stem of every song in `songs`, as Opus, into `folder`."""
    for path in sorted(p for p in songs.glob("*/*") if p.suffix in (".wav", ".flac", ".opus")):
        start, end = (seconds * SAMPLE_RATE for seconds in VALID_SECONDS)
        audio = read_audio(str(path))
        target = folder / path.parent.name / f"{path.stem}.opus"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_opus(target, audio[start:end] if len(audio) > end else audio[: end - start])


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pack(
    rows: Iterable[dict[str, Any]], pools: Path, out: Path, *, pieces: int, most: int, valid: Path | None
) -> list[float]:
    """Fill pieces of at most `most` bytes in the order of rank. Returns the minutes in each of them.

    Raises ValueError when one helping alone, or the validation songs, fill more than a piece.
    """
    for old in out.glob("piece-*"):
        shutil.rmtree(old)
    (out / "encoded").mkdir(parents=True, exist_ok=True)
    ranked = sorted((h for row in rows for h in helpings(row)), key=lambda h: h.rank)
    minutes: list[float] = []
    contents: list[dict[str, Any]] = []
    filled = most

    def close() -> None:
        if contents:
            (out / f"piece-{len(minutes)}/piece.json").write_text(json.dumps(contents))
            contents.clear()

    with Progress() as progress:
        for helping in progress.track(ranked, description="encoding"):
            path = encode(helping, pools, out / "encoded")
            row = row_of(helping)
            needed = path.stat().st_size + len(json.dumps(row)) + 4096
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
                    raise ValueError(f"{helping.file} does not fit into a piece of {most / 2**20:.0f} MiB")
            os.link(path, folder / helping.file)
            contents.append(row)
            minutes[-1] += sum(row["lengths"]) / SAMPLE_RATE / 60
            filled += needed
    close()
    return minutes


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.lent_gpu.prepare", description="Pack the corpus for a lent GPU."
    )
    parser.add_argument("--pools", type=Path, required=True, help="what training.data.build wrote")
    parser.add_argument("--valid", type=Path, help="folder of songs with stems")
    parser.add_argument("--out", type=Path, default=Path(".lent"), help="an ignored folder of the checkout")
    parser.add_argument("--pieces", type=int, default=6)
    parser.add_argument("--mib", type=float, default=38, help="of a piece: 64 less the tree and the wheels")
    options = parser.parse_args(arguments)
    manifest = options.pools / "manifest.json"
    if not manifest.is_file():
        parser.error(f"{manifest} is not there: build the corpus first (training/data/README.md)")
    rows = json.loads(manifest.read_text(encoding="utf-8"))["sources"]
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
