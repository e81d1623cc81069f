"""A song and the files that its stems lie in, and how they are decoded.

`training.data.musdb` and `training.data.folder` find tracks; `training.data.cache` keeps what `decode` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.evaluation.multitrack import Feed

SAMPLE_RATE = 44_100  # Hz
FULL_SCALE = 32_767
BLOCK = 20 * SAMPLE_RATE  # frames decoded at a time


@dataclass(frozen=True)
class Track:
    """One song."""

    name: str
    files: dict[str, tuple[Path, ...]]  # stem -> files whose sum it is
    streams: dict[str, int] | None = None  # stem -> audio stream, where all stems lie in one .stem.mp4

    @property
    def paths(self) -> list[Path]:
        """Every file, each once."""
        return sorted({path for paths in self.files.values() for path in paths})


def decode(track: Track, stems: tuple[str, ...]) -> NDArray[np.int16]:
    """(n, s, 2) at 44.1 kHz; a stem without a file is zeros, a shorter one ends in silence.

    A track with a stem above full scale is turned down as a whole, so that its stems keep their balance.
    Raises InputError for a file that cannot be read.
    """
    if track.streams is None:
        waves = [_read_files(track.files.get(stem, ())) for stem in stems]
    else:
        waves = _read_streams(track.paths[0], [track.streams.get(stem) for stem in stems])
    n = max(wave.shape[0] for wave in waves)
    peak = max((float(np.abs(wave).max(initial=0.0)) for wave in waves), default=0.0)
    scale = FULL_SCALE / max(peak, 1.0)
    samples = np.zeros((n, len(stems), 2), np.int16)
    for i, wave in enumerate(waves):
        samples[: len(wave), i] = np.rint(wave * scale)
    return samples


def _read_files(paths: tuple[Path, ...]) -> NDArray[np.float32]:
    """(n, 2): the sum of the files."""
    feed, blocks = Feed(list(paths), SAMPLE_RATE), [np.zeros((2, 0), np.float32)]
    while not feed.ended:
        blocks.append(feed.take(BLOCK))
    return np.concatenate(blocks, axis=1)[:, : feed.frames].T


def _read_streams(path: Path, streams: list[int | None]) -> list[NDArray[np.float32]]:
    """(n, 2) of each stream of a .stem.mp4; of None: silence."""
    import soxr
    import stempeg  # looks for ffmpeg as soon as it is imported

    from tfswa_sep.errors import InputError

    try:
        audio, rate = stempeg.read_stems(str(path), dtype=np.float32)
    except Exception as error:  # ffmpeg-python's and stempeg's own, by the way the file is broken
        words = str(error).strip().splitlines()
        raise InputError(
            f"{path} cannot be decoded: {words[-1] if words else type(error).__name__}"
        ) from error
    if audio.ndim != 3 or len(audio) <= max(stream or 0 for stream in streams):
        raise InputError(f"{path} holds {len(audio) if audio.ndim == 3 else 1} streams: not a MUSDB18 file")
    waves = [audio[stream] if stream is not None else audio[0, :0] for stream in streams]
    return [soxr.resample(wave, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else wave for wave in waves]
