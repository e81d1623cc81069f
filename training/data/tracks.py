"""A song, the files of its stems, and how to decode them.

`training.data.musdb` and `training.data.folder` find tracks; `training.data.cache` stores them decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.errors import InputError
from tfswa_sep.evaluation.multitrack import Feed

FULL_SCALE = 32_767
BLOCK = 20 * SAMPLE_RATE  # frames decoded at a time


@dataclass(frozen=True)
class Track:
    """One song."""

    name: str
    files: dict[str, tuple[Path, ...]]  # stem -> the files that add up to it
    streams: dict[str, int] | None = None  # stem -> audio stream, if all stems are in one .stem.mp4


def decode(track: Track, stems: tuple[str, ...]) -> NDArray[np.int16]:
    """Decode a song to (n, s, 2) at 44.1 kHz.

    Stems without a file are silent, and shorter stems are padded with silence. If any stem exceeds full scale, all
    stems are scaled down together. Raises InputError if a file cannot be read.
    """
    if track.streams is None:
        waves = [_read_files(track.files.get(stem, ())) for stem in stems]
    else:
        ((path,), *_) = track.files.values()
        waves = _read_streams(path, [track.streams.get(stem) for stem in stems])
    n = max(wave.shape[0] for wave in waves)
    peak = max((float(np.abs(wave).max(initial=0.0)) for wave in waves), default=0.0)
    scale = FULL_SCALE / max(peak, 1.0)
    samples = np.zeros((n, len(stems), 2), np.int16)
    for i, wave in enumerate(waves):
        samples[: len(wave), i] = np.rint(wave * scale)
    return samples


def to_float(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """(n, s, 2) int16 -> (s, 2, n) float32 between -1 and 1."""
    return np.ascontiguousarray(samples.transpose(1, 2, 0).astype(np.float32) / np.float32(32_768))


def _read_files(paths: tuple[Path, ...]) -> NDArray[np.float32]:
    """The sum of the files, (n, 2)."""
    feed, blocks = Feed(list(paths), SAMPLE_RATE), [np.zeros((2, 0), np.float32)]
    while not feed.ended:
        blocks.append(feed.take(BLOCK))
    return np.concatenate(blocks, axis=1)[:, : feed.frames].T


def _read_streams(path: Path, streams: list[int | None]) -> list[NDArray[np.float32]]:
    """Streams of a .stem.mp4, (n, 2) each; None is silence."""
    import soxr
    import stempeg  # looks for ffmpeg as soon as it is imported

    try:
        audio, rate = stempeg.read_stems(str(path), dtype=np.float32)
    except Exception as error:  # stempeg's and ffmpeg-python's exceptions share no base class
        lines = str(error).strip().splitlines()
        reason = lines[-1] if lines else type(error).__name__
        raise InputError(f"{path} cannot be decoded: {reason}") from error
    if audio.ndim != 3 or len(audio) <= max(stream or 0 for stream in streams):
        count = len(audio) if audio.ndim == 3 else 1
        raise InputError(f"{path} has too few audio streams for a MUSDB18 file ({count})")
    waves = [audio[stream] if stream is not None else audio[0, :0] for stream in streams]
    return [soxr.resample(wave, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else wave for wave in waves]
