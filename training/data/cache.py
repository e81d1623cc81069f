"""Decoded songs on disk, to be memory-mapped: one array (n, s, 2) of int16 a song, and what is known of it.

    CACHE/<song>.npy    samples at 44.1 kHz
    CACHE/<song>.json   stems, the files it was decoded from, the array's SHA-256, where each stem sounds

A song is decoded again when a file of it has changed, or its array is damaged. Files are written beside
their place and renamed, the array first, so that a build that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.audio.atomic_file import atomic_write, remove_abandoned
from tfswa_sep.registry import digest
from training.data.tracks import SAMPLE_RATE, Track, decode
from training.progress import progress_bar

FORMAT = 1
ACTIVITY_BLOCK = SAMPLE_RATE // 2  # frames; half a second
SILENT = 10 ** (-60 / 20)  # RMS of full scale under which a block counts as silence


@dataclass(frozen=True)
class CachedTrack:
    """A song of the cache."""

    name: str
    stems: tuple[str, ...]
    path: Path
    active: NDArray[np.bool_]  # (blocks, s): which stems sound in a block of half a second
    known: tuple[bool, ...]  # (s,): whether there is a file of the stem, be it silent

    @property
    def samples(self) -> NDArray[np.int16]:
        """(n, s, 2), memory-mapped."""
        array: NDArray[np.int16] = np.load(self.path, mmap_mode="r")
        return array


def build_cache(
    tracks: Sequence[Track], stems: tuple[str, ...], folder: Path, *, workers: int | None = None
) -> list[CachedTrack]:
    """Decode what the cache lacks, `workers` songs at a time (None: one a processor). Returns all tracks.

    Raises InputError for a file that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as threads:  # hashing lets go of the interpreter
        whole = list(threads.map(lambda track: _is_whole(track, stems, folder), tracks))
    missing = [track for track, there in zip(tracks, whole, strict=True) if not there]
    with progress_bar(f"decoding {len(missing)} songs", total=len(missing)) as advance:
        if workers == 1 or len(missing) < 2:
            for track in missing:
                _build(track, stems, folder)
                advance()
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
                for done in as_completed([pool.submit(_build, track, stems, folder) for track in missing]):
                    done.result()
                    advance()
    return [open_track(track.name, folder) for track in tracks]


def open_track(name: str, folder: Path) -> CachedTrack:
    """A song that `build_cache` has written."""
    known = json.loads((folder / f"{name}.json").read_text())
    active = np.array([[flag == "1" for flag in flags] for flags in known["active"]], np.bool_).T
    stems = tuple(known["stems"])
    has_file = tuple(stem in known["files"] for stem in stems)
    return CachedTrack(name, stems, folder / f"{name}.npy", active, has_file)


def _is_whole(track: Track, stems: tuple[str, ...], folder: Path) -> bool:
    try:
        known = json.loads((folder / f"{track.name}.json").read_text())
        same = all(known[key] == value for key, value in _origin(track, stems).items())
        return same and known["sha256"] == digest(folder / f"{track.name}.npy")
    except (OSError, ValueError, KeyError):
        return False


def _origin(track: Track, stems: tuple[str, ...]) -> dict[str, Any]:
    """What the array depends on: where one of these has changed, it has to be made again."""
    files = {
        stem: [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        for stem, paths in sorted(track.files.items())
    }
    return {"format": FORMAT, "stems": list(stems), "files": files}


def _build(track: Track, stems: tuple[str, ...], folder: Path) -> None:
    origin, samples = _origin(track, stems), decode(track, stems)
    with atomic_write(folder / f"{track.name}.npy") as temporary, temporary.open("wb") as stream:
        np.save(stream, samples)
    flags = ["".join("1" if on else "0" for on in stem) for stem in _activity(samples).T]
    known = {**origin, "sha256": digest(folder / f"{track.name}.npy"), "active": flags}
    with atomic_write(folder / f"{track.name}.json") as temporary:
        temporary.write_text(json.dumps(known))


def _activity(samples: NDArray[np.int16]) -> NDArray[np.bool_]:
    """(n, s, 2) -> (blocks, s); the last block may be a short one."""
    starts = range(0, max(len(samples), 1), ACTIVITY_BLOCK)
    blocks = [samples[start : start + ACTIVITY_BLOCK].astype(np.float32) / 32_768 for start in starts]
    powers = np.array([np.square(block).sum(axis=(0, 2)) / max(2 * len(block), 1) for block in blocks])
    active: NDArray[np.bool_] = np.sqrt(powers) > SILENT
    return active
