"""Pack pools and checkpoints in pieces of limited size, for upload to a machine without network.

    python -m training.corpus.pack pack --pools POOLS --valid SONGS --out PACKED --mib 50
    python -m training.corpus.pack unpack PACKED/piece-* --out POOLS       # then train with data.pools=POOLS
    python -m training.corpus.pack split last.ckpt --out PARTS --mib 15
    python -m training.corpus.pack join PARTS --out last.ckpt

Sources are cut into clips of about 45 s and written as Opus; the stems of a song stay together. The first clip of every
source comes before the second of any, and pools take turns, so that training can start with any number of pieces.
Unpacking more pieces later replaces the pools. The first piece also contains an excerpt of every validation song: train
with data.valid=POOLS/valid.

    PACKED/encoded/               all clips, reused by later runs
    PACKED/piece-1/piece.json     one row per clip: its row of the manifest, file, and segment lengths
    PACKED/piece-1/*.opus
    PACKED/piece-1/valid/<song>/<stem>.opus
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tfswa_sep.audio.atomic_file import atomic_write
from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.errors import TfswaError
from tfswa_sep.evaluation.multitrack import find_songs
from tfswa_sep.evaluation.musdb import decode_stems
from training.corpus.manifest import write_manifest
from training.corpus.recorded.sources import Audio, to_int16
from training.progress import progress_bar

OPUS_RATE = 48_000  # Hz
BITRATE = 56  # kbit/s per channel
CLIP = 45 * SAMPLE_RATE  # minimum length of a clip
VALID_SECONDS = (20, 60)  # of each validation song
MIB = 2**20
# Pools with small numbers come sooner: real songs and voices are rare, rendered bands are plentiful.
ORDER = {
    "song": 0.6, "vocals": 0.4, "accompaniment": 0.4, "other": 0.2, "drums": 0.2, "bass": 0.2, "band": 3.0,
}  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """Part of a source."""

    row: dict[str, Any]  # of the manifest
    number: int
    segments: list[tuple[int, int]]  # sample ranges

    @property
    def file(self) -> str:
        """Name of its file, which includes the source's fingerprint."""
        return f"{self.row['pool']}.{self.row['source']}.{self.number}.{self.row['fingerprint'][:6]}.opus"

    def to_json(self) -> dict[str, Any]:
        """Its row in piece.json."""
        excluded = ("segments", "labels", "array", "seconds_to_build")
        columns = {key: value for key, value in self.row.items() if key not in excluded}
        lengths = [end - start for start, end in self.segments]
        return columns | {"number": self.number, "file": self.file, "lengths": lengths}


def cut_clips(row: dict[str, Any]) -> list[Clip]:
    """Group a source's segments into clips of at least CLIP; longer segments are cut, except those of songs."""
    segments: list[tuple[int, int]] = row["segments"]
    if "song" not in row:
        segments = [(cut, min(cut + CLIP, end)) for start, end in segments for cut in range(start, end, CLIP)]
    clips: list[list[tuple[int, int]]] = []
    filled = CLIP
    for start, end in segments:
        if filled >= CLIP:
            clips.append([])
            filled = 0
        clips[-1].append((start, end))
        filled += end - start
    return [Clip(row, number, part) for number, part in enumerate(clips)]


def order_clips(rows: Iterable[dict[str, Any]]) -> list[list[Clip]]:
    """Groups of clips that stay together, in packing order, without pools that are not in ORDER."""
    groups: dict[tuple[int, str, str], list[Clip]] = {}
    for row in rows:
        for clip in cut_clips(row) if row["pool"] in ORDER else ():
            groups.setdefault((clip.number, row["pool"], row.get("song", row["source"])), []).append(clip)
    by_pool: dict[tuple[int, str], list[list[Clip]]] = {}
    for (number, pool, _), group in groups.items():
        by_pool.setdefault((number, pool), []).append(group)
    ranked = [
        (number, ORDER[pool] * (i + 0.5) / len(pool_groups), group)
        for (number, pool), pool_groups in by_pool.items()
        for i, group in enumerate(pool_groups)
    ]
    return [group for _, _, group in sorted(ranked, key=lambda item: item[:2])]


def write_opus(path: Path, audio: Audio) -> None:
    """Write (n, c) at 44.1 kHz atomically."""
    resampled = np.clip(soxr.resample(audio, SAMPLE_RATE, OPUS_RATE), -1, 1)
    level = 1 - (BITRATE - 6) / 250  # libsndfile maps 0 to 1 to 256 to 6 kbit/s per channel
    with (
        atomic_write(path) as temporary,
        soundfile.SoundFile(
            temporary, "w", OPUS_RATE, audio.shape[1], format="OGG", subtype="OPUS", compression_level=level
        ) as file,
    ):
        for start in range(0, len(resampled), OPUS_RATE):  # libsndfile fails on very long writes
            file.write(resampled[start : start + OPUS_RATE])


def read_opus(path: Path, samples: int) -> NDArray[np.int16]:
    """(samples, c) at 44.1 kHz."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    audio = soxr.resample(audio, rate, SAMPLE_RATE)[:samples]
    return to_int16(np.pad(audio, ((0, samples - len(audio)), (0, 0))))


def encode(clip: Clip, pools: Path, folder: Path) -> Path:
    """Encode a clip in `folder` unless it exists; returns its path."""
    path = folder / clip.file
    if not path.is_file():
        samples: NDArray[np.int16] = np.load(pools / clip.row["array"], mmap_mode="r")
        parts = [samples[start:end] for start, end in clip.segments]
        write_opus(path, (np.concatenate(parts) / 32768).astype(np.float32))
    return path


def write_excerpts(songs: Path, out: Path) -> None:
    """Write an excerpt of every stem of the songs in a folder, be they folders of stems or .stem.mp4 files.

    All stems of a song are cut at VALID_SECONDS, or at the beginning if one of them is shorter. Raises TfswaError if a
    song cannot be read.
    """
    first, last = VALID_SECONDS
    for song in find_songs(songs):
        with tempfile.TemporaryDirectory() as folder:
            stems = decode_stems(song, Path(folder))
            names = [stem for stem in stems.stems if stem in stems.files]
            is_long = all(soundfile.info(stems.files[stem]).duration > last for stem in names)
            start = first * SAMPLE_RATE if is_long else 0
            feeds = stems.truths(SAMPLE_RATE)
            for stem in names:
                (out / song.name).mkdir(parents=True, exist_ok=True)
                feeds[stem].take(start)
                audio = feeds[stem].take((last - first) * SAMPLE_RATE)[:, : feeds[stem].frames - start]
                write_opus(out / song.name / f"{stem}.opus", audio.T)


def size(folder: Path) -> int:
    """Total bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pack(pools: Path, out: Path, *, limit: int, pieces: int | None = None, valid: Path | None = None) -> None:
    """Write pools as `piece-1`, `piece-2`, ... to `out`, replacing earlier pieces.

    Args:
        pools: Folder written by `training.corpus.build`.
        out: Folder for the pieces.
        limit: Maximum bytes per piece.
        pieces: Maximum number of pieces, filled with the first clips. None: no limit.
        valid: Folder of validation songs.

    Raises:
        ValueError: A song, a clip or the validation excerpts exceed a piece.
        TfswaError: A validation song cannot be read.
        OSError: There is no manifest.
    """
    rows = json.loads((pools / "manifest.json").read_text(encoding="utf-8"))["sources"]
    for old in out.glob("piece-*"):
        shutil.rmtree(old)
    (out / "encoded").mkdir(parents=True, exist_ok=True)
    groups = order_clips(rows)
    folder, filled, contents, count = out, limit, list[dict[str, Any]](), 0
    with progress_bar("packing", total=len(groups)) as advance:
        for group in groups:
            paths = [encode(clip, pools, out / "encoded") for clip in group]
            entries = [clip.to_json() for clip in group]
            needed = sum(path.stat().st_size for path in paths) + len(json.dumps(entries)) + 2
            if filled + needed > limit:
                if count == pieces:
                    break
                count += 1
                folder, contents = out / f"piece-{count}", []
                folder.mkdir()
                if valid and count == 1:
                    write_excerpts(valid, folder / "valid")
                filled = size(folder) + 2
                if filled + needed > limit:
                    raise ValueError(f"{group[0].file} does not fit into a piece of {limit / MIB:.1f} MiB")
            for path in paths:
                os.link(path, folder / path.name)
            contents += entries
            (folder / "piece.json").write_text(json.dumps(contents))
            filled += needed
            advance()


def unpack(pieces: Iterable[Path], out: Path, *, processes: int | None = None) -> float:
    """Write the pools in `pieces`, decoded by `processes` (None: one per CPU); returns their minutes."""
    sources: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for piece in pieces:
        for row in json.loads((piece / "piece.json").read_text()):
            sources.setdefault((row["pool"], row["source"]), []).append(row | {"path": piece / row["file"]})
        if (piece / "valid").is_dir():
            shutil.copytree(piece / "valid", out / "valid", dirs_exist_ok=True)
    with ProcessPoolExecutor(processes) as executor:
        rows = list(executor.map(_write_source, sources.values(), [out] * len(sources)))
    write_manifest(out, rows, seed=0)
    return sum(float(row["minutes"]) for row in rows)


def _write_source(clips: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Decode a source's clips to one array; returns its row of the manifest."""
    clips = sorted(clips, key=lambda row: int(row["number"]))
    samples = np.concatenate([read_opus(row["path"], sum(row["lengths"])) for row in clips])
    ends = np.cumsum([length for row in clips for length in row["lengths"]]).tolist()
    array = f"{clips[0]['pool']}/{clips[0]['source']}.npy"
    (out / array).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / array) as temporary, temporary.open("wb") as file:
        np.save(file, samples)
    columns = {key: clips[0][key] for key in clips[0] if key not in ("path", "file", "lengths", "number")}
    segments = list(zip([0, *ends[:-1]], ends, strict=True))
    return {**columns, "minutes": round(ends[-1] / SAMPLE_RATE / 60, 3), "array": array, "segments": segments}


def split(file: Path, out: Path, *, limit: int) -> None:
    """Split a file into parts of at most `limit` bytes, with its SHA-256, replacing earlier parts in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("part.*"):
        old.unlink()
    content = file.read_bytes()
    for number, start in enumerate(range(0, len(content), limit)):
        (out / f"part.{number}").write_bytes(content[start : start + limit])
    (out / "sha256").write_text(hashlib.sha256(content).hexdigest())


def join(parts: Path, out: Path) -> None:
    """Join the parts of a file. Raises ValueError, without writing anything, if a part is missing or damaged."""
    paths = sorted(parts.glob("part.*"), key=lambda path: int(path.suffix[1:]))
    content = b"".join(path.read_bytes() for path in paths)
    if hashlib.sha256(content).hexdigest() != (parts / "sha256").read_text():
        raise ValueError(f"{parts}: a part is missing or damaged")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pack", help="pack pools in pieces")
    command.add_argument("--pools", type=Path, required=True, help="folder written by training.corpus.build")
    command.add_argument("--valid", type=Path, help="validation songs: folders of stems or .stem.mp4 files")
    command.add_argument("--pieces", type=int, help="maximum number of pieces (default: no limit)")
    command.add_argument("--mib", type=float, default=50, help="maximum size of a piece")
    command = commands.add_parser("unpack", help="unpack pieces to pools")
    command.add_argument("pieces", type=Path, nargs="+")
    command = commands.add_parser("split", help="split a file into parts")
    command.add_argument("file", type=Path)
    command.add_argument("--mib", type=float, default=15, help="maximum size of a part")
    command = commands.add_parser("join", help="join the parts of a file")
    command.add_argument("parts", type=Path)
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        for line in _run(options):
            print(line)
    except (OSError, ValueError, TfswaError) as error:
        print(error, file=sys.stderr)
        return 3
    return 0


def _run(options: argparse.Namespace) -> Iterator[str]:
    out: Path = options.out
    if options.command == "pack":
        limit = int(options.mib * MIB)
        pack(options.pools, out, limit=limit, pieces=options.pieces, valid=options.valid)
        for piece in sorted(out.glob("piece-*"), key=lambda path: int(path.name.removeprefix("piece-"))):
            yield f"{piece}: {size(piece) / MIB:.1f} MiB"
    elif options.command == "unpack":
        yield f"{out}: {unpack(options.pieces, out):.0f} min"
    elif options.command == "split":
        split(options.file, out, limit=int(options.mib * MIB))
    else:
        join(options.parts, out)


if __name__ == "__main__":
    sys.exit(main())
