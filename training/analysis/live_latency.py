"""What live separation costs: SDR and CPU load against window, hop and look-ahead.

    python -m training.analysis.live_latency FOLDER [--songs 12] [--model MODEL.onnx ...]

FOLDER holds songs as <song>/<stem>.flac; their sums are the mixtures. As in live separation, the network sees a window
that ends with the newest sample and runs every hop; of each result, the newest samples but the look-ahead are kept,
here without a cross-fade, so that every hop and look-ahead can be read off the same runs. The latency is hop +
look-ahead; the CPU load is that of one core, with the time that the network and its transforms take for one window.
SDR is over whole songs, in dB, the mean of the songs in which the stem plays.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.evaluation.multitrack import Feed, Song, find_songs
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.inference.separate_blocks import separate_blocks

Samples = NDArray[np.float32]

FRAMES = (32, 64, 128, 384)  # of a window
LOOKAHEADS = (0, 512, 1024, 2048, 4096, 8192, 16384, 24576)  # samples
HOPS = (2048, 4096, 8192, 16384)  # samples
LONG = 1.0  # seconds: longer windows are not run at the shortest hop, which no computer could do live
SILENT = 1e-4  # mean square below which a stem does not play


def load(song: Song, stems: Sequence[str], rate: int) -> Samples:
    """The true stems, (s, c, n)."""
    truths = song.truths(rate)
    return np.stack([_everything(truths[stem]) for stem in stems])


def _everything(feed: Feed) -> Samples:
    parts = []
    while not feed.ended:
        parts.append(feed.take(1 << 20))
    return np.concatenate(parts, axis=1)[:, : feed.frames]


def windows(mixture: Samples, window: int, step: int) -> Iterator[tuple[int, Samples]]:
    """The end of each window in samples, and the window (c, n), with silence before the song."""
    padded = np.pad(mixture, ((0, 0), (window, 0)))
    for end in range(step, mixture.shape[1] + 1, step):
        yield end, padded[:, end : end + window]


def errors(backend: OnnxBackend, true: Samples, window: int) -> dict[tuple[int, int], NDArray[np.float64]]:
    """The SDR of each stem in dB, (s,), by (look-ahead, hop) in samples; NaN where the stem does not play."""
    mixture = true.sum(axis=0)
    hops = HOPS if window < LONG * backend.sample_rate else HOPS[1:]
    kept = [(ahead, hop) for ahead in LOOKAHEADS for hop in hops if ahead + hop <= window // 2]
    reach = max(ahead + hop for ahead, hop in kept)
    noise = {key: np.zeros(len(true)) for key in kept}
    power = {key: np.zeros(len(true)) for key in kept}
    for end, samples in windows(mixture, window, hops[0]):
        stems = backend.newest(samples[None], reach)[0]
        squared = np.zeros((2, len(true), reach + 1))
        known = true[:, :, max(end - reach, 0) : end]
        known = np.pad(known, ((0, 0), (0, 0), (reach - known.shape[2], 0)))
        squared[0, :, 1:] = np.square(stems - known).sum(axis=1).cumsum(axis=1)
        squared[1, :, 1:] = np.square(known).sum(axis=1).cumsum(axis=1)
        for ahead, hop in kept:
            if end % hop == 0 and end >= ahead + hop:
                sums = squared[:, :, reach - ahead] - squared[:, :, reach - ahead - hop]
                noise[ahead, hop] += sums[0]
                power[ahead, hop] += sums[1]
    playing = np.square(true).mean(axis=(1, 2)) > SILENT * np.square(mixture).mean()
    return {key: np.where(playing, 10 * np.log10(power[key] / noise[key]), np.nan) for key in kept}


def offline(backend: OnnxBackend, true: Samples) -> NDArray[np.float64]:
    """The SDR of each stem in dB, (s,), where the whole song is known."""
    mixture = true.sum(axis=0)
    stems = np.concatenate(list(separate_blocks(backend, [mixture], backend.stems)), axis=-1)
    playing = np.square(true).mean(axis=(1, 2)) > SILENT * np.square(mixture).mean()
    ratio = np.square(true).sum(axis=(1, 2)) / np.square(true - stems).sum(axis=(1, 2))
    return np.where(playing, 10 * np.log10(ratio), np.nan)


def milliseconds(backend: OnnxBackend, window: int, kept: int) -> float:
    """How long one window takes on one core: the median of nine."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, (1, backend.channels, window)).astype(np.float32)
    spent = []
    for _ in range(10):
        began = time.perf_counter()
        backend.newest(samples, kept)
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent[1:])  # the first one warms up


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--songs", type=int, default=12, help="songs to use, evenly spread (default: 12)")
    parser.add_argument("--model", type=Path, nargs="+", default=[Path("tfswa_sep/weights/small.int8.onnx")])
    parser.add_argument("--times", action="store_true", help="measure only the time per window")
    options = parser.parse_args()
    found = find_songs(options.folder)
    songs = found[:: max(1, len(found) // options.songs)][: options.songs]
    for path in options.model:
        backend = OnnxBackend(path, threads=1)
        lengths = [backend.fit_segment((frames - 1) * 512) for frames in FRAMES]
        if options.times:
            for window in lengths:
                print(f"{path.name} {window} {milliseconds(backend, window, 4096):.1f} ms", flush=True)
            continue
        true = [load(song, backend.stems, backend.sample_rate) for song in songs]
        print("| model | window | look-ahead | hop | latency ms |", " | ".join(backend.stems), "| mean |")
        rows: list[tuple[object, list[NDArray[np.float64]]]] = [
            ((path.name, "offline", "", "", ""), [offline(backend, each) for each in true])
        ]
        for window in lengths:
            scores = [errors(backend, each, window) for each in true]
            for ahead, hop in scores[0]:
                latency = round(1000 * (ahead + hop) / backend.sample_rate)
                rows.append(((path.name, window, ahead, hop, latency), [s[ahead, hop] for s in scores]))
            _print(rows)
            rows.clear()


def _print(rows: Sequence[tuple[object, list[NDArray[np.float64]]]]) -> None:
    for label, scores in rows:
        means = np.nanmean(scores, axis=0)
        cells = " | ".join(f"{value:.2f}" for value in (*means, means.mean()))
        print("|", " | ".join(map(str, label)), "|", cells, "|", flush=True)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
