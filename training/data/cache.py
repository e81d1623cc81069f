"""Decoded songs on disk, to be memory-mapped.

    CACHE/<song>.npy    int16 samples at 44.1 kHz, (n, s, 2)
    CACHE/<song>.json   stems, source files, the array's SHA-256, and when each stem is active

A song is decoded again if one of its files has changed or its array is damaged. Files are written atomically, the
array first, so that an interrupted build can be resumed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio.atomic_file import atomic_write, remove_abandoned, write_text
from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.inference.hardware import count_cores
from tfswa_sep.registry import digest
from training.data.tracks import Track, decode
from training.progress import progress_bar

FORMAT = 1
ACTIVITY_BLOCK = SAMPLE_RATE // 2  # frames; half a second
SILENCE = 10 ** (-60 / 20)  # RMS below which a block counts as silent; full scale is 1


@dataclass(frozen=True)
class CachedTrack:
    """A song in the cache."""

    name: str
    stems: tuple[str, ...]
    path: Path
    active: NDArray[np.bool_]  # (blocks, s): which stems are active in each half second
    known: tuple[bool, ...]  # (s,): whether the stem has a file, even a silent one

    @property
    def samples(self) -> NDArray[np.int16]:
        """(n, s, 2), memory-mapped."""
        array: NDArray[np.int16] = np.load(self.path, mmap_mode="r")
        return array


def build_cache(
    tracks: Sequence[Track], stems: tuple[str, ...], folder: Path, *, workers: int | None = None
) -> list[CachedTrack]:
    """Decode the songs that the cache lacks, and return all tracks.

    `workers` songs are decoded at a time; None means one per CPU core that this process may use.
    Raises InputError if a file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    workers = workers or count_cores() or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as threads:  # hashing releases the GIL
        cached = list(threads.map(lambda track: _is_cached(track, stems, folder), tracks))
    missing = [track for track, is_cached in zip(tracks, cached, strict=True) if not is_cached]
    if missing and not sys.stderr.isatty():  # a job's log, which has no progress bar
        print(f"decoding {len(missing)} songs into {folder}", flush=True)
    with progress_bar(f"decoding {len(missing)} songs", total=len(missing)) as advance:
        if workers == 1 or len(missing) < 2:
            for track in missing:
                _build(track, stems, folder)
                advance()
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
                for future in as_completed([pool.submit(_build, track, stems, folder) for track in missing]):
                    future.result()
                    advance()
    return [open_track(track.name, folder) for track in tracks]


def open_track(name: str, folder: Path) -> CachedTrack:
    """A song that `build_cache` has written."""
    entry = json.loads((folder / f"{name}.json").read_text())
    active = np.array([[flag == "1" for flag in flags] for flags in entry["active"]], np.bool_).T
    stems = tuple(entry["stems"])
    known = tuple(stem in entry["files"] for stem in stems)
    return CachedTrack(name, stems, folder / f"{name}.npy", active, known)


def _is_cached(track: Track, stems: tuple[str, ...], folder: Path) -> bool:
    """Whether the song's array is up to date and undamaged."""
    try:
        entry = json.loads((folder / f"{track.name}.json").read_text())
        is_current = all(entry[key] == value for key, value in _inputs(track, stems).items())
        return is_current and entry["sha256"] == digest(folder / f"{track.name}.npy")
    except (OSError, ValueError, KeyError):
        return False


def _inputs(track: Track, stems: tuple[str, ...]) -> dict[str, Any]:
    """Everything that the array depends on."""
    files = {
        stem: [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        for stem, paths in sorted(track.files.items())
    }
    return {"format": FORMAT, "stems": list(stems), "files": files}


def _build(track: Track, stems: tuple[str, ...], folder: Path) -> None:
    inputs, samples = _inputs(track, stems), decode(track, stems)
    path = folder / f"{track.name}.npy"
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, samples)
    active = ["".join("1" if flag else "0" for flag in flags) for flags in _activity(samples).T]
    write_text(
        path.with_name(f"{track.name}.json"), json.dumps({**inputs, "sha256": digest(path), "active": active})
    )


def _activity(samples: NDArray[np.int16]) -> NDArray[np.bool_]:
    """(n, s, 2) -> (blocks, s); the last block may be short."""
    starts = range(0, max(len(samples), 1), ACTIVITY_BLOCK)
    blocks = [samples[start : start + ACTIVITY_BLOCK].astype(np.float32) / 32_768 for start in starts]
    powers = np.array([np.square(block).sum(axis=(0, 2)) / max(2 * len(block), 1) for block in blocks])
    active: NDArray[np.bool_] = np.sqrt(powers) > SILENCE
    return active
