"""Show which frequencies a model gets wrong: `python -m training.analysis.error_spectrum --data SONGS [--model MODEL]`.

For each stem and frequency band, prints the band's share of the error, its SDR, and the SDR of an oracle ratio
mask, each averaged over the songs in which the stem is not silent. SONGS is a folder as for `tfswa-sep eval
--data`. A model has most to gain in bands with a large share of the error and an SDR far below the oracle's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tfswa_sep.constants import HOP, MODEL_CHANNELS, N_FFT, STEMS
from tfswa_sep.errors import TfswaError
from tfswa_sep.evaluation.methods import Estimates, Method, ModelMethod, OracleBaseline
from tfswa_sep.evaluation.metrics import SILENCE_RMS, decibels
from tfswa_sep.evaluation.multitrack import BLOCK_SECONDS, Feed, Song, find_songs
from tfswa_sep.inference.stft_numpy import stft

EDGES = (0, 100, 200, 400, 800, 1600, 3200, 6400, np.inf)  # Hz

Energies = NDArray[np.float64]


def band_energies(samples: NDArray[np.float32], rate: int) -> Energies:
    """Compute the energy of samples (c, n) in each band between EDGES.

    Frames at both ends are ignored: a tone that is cut off there has energy in all bands.
    """
    edge = N_FFT // 2 // HOP
    power = np.square(np.abs(stft(samples)[..., edge:-edge])).sum(axis=(0, 2), dtype=np.float64)
    bands = np.searchsorted(EDGES, np.fft.rfftfreq(N_FFT, 1 / rate), side="right") - 1
    return np.bincount(bands, power, minlength=len(EDGES) - 1).astype(np.float64)


def song_errors(song: Song, methods: Sequence[Method]) -> dict[str, tuple[Energies, Energies]]:
    """Compute the energies of each stem that is not silent (bands,), and of the errors (methods, bands)."""
    rate = methods[0].rate
    with tempfile.TemporaryDirectory(prefix="tfswa-sep-errors-") as name:
        mixture = Path(name) / "mixture.wav"
        frames = song.write_mixture(mixture, rate=rate)
        estimates: list[Estimates] = []
        for i, method in enumerate(methods):
            folder = Path(name) / str(i)
            folder.mkdir()
            estimates.append(method.estimate(song, mixture, folder, lambda _: None))
        energies = {}
        for stem, truth in song.truths(rate).items():
            if any(stem not in each.files for each in estimates):  # a model with fewer stems
                continue
            feeds = [Feed(each.files[stem], rate) for each in estimates]
            power, errors, total = np.zeros(len(EDGES) - 1), np.zeros((len(methods), len(EDGES) - 1)), 0.0
            for start in range(0, frames, BLOCK_SECONDS * rate):
                size = min(BLOCK_SECONDS * rate, frames - start)
                block = truth.take(size)
                total += float(np.square(block).sum(dtype=np.float64))
                power += band_energies(block, rate)
                errors += [band_energies(feed.take(size) - block, rate) for feed in feeds]
            if total > MODEL_CHANNELS * frames * SILENCE_RMS**2:
                energies[stem] = power, errors
    return energies


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.analysis.error_spectrum", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of songs with their true stems")
    parser.add_argument("--model", default="small", help="model name or file (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        methods = (ModelMethod(options.model), OracleBaseline(binary=False))
        songs = [song_errors(song, methods) for song in find_songs(options.data)]
    except TfswaError as error:
        parser.exit(error.exit_code, f"{error}\n")
    bands = [f"{low} to {high}" for low, high in pairwise(EDGES[:-1])]
    table = Table(
        "Hz", *bands, f"from {EDGES[-2]}", title="share of the error, SDR in dB, SDR of an oracle ratio mask"
    )
    for stem in STEMS:
        energies = [song[stem] for song in songs if stem in song]
        if not energies:
            continue
        share = np.mean([errors[0] / errors[0].sum() for _, errors in energies], axis=0)
        ratios = np.mean([decibels(power, errors) for power, errors in energies], axis=0)
        cells = [f"{a:.0%} {b:.1f} {c:.1f}" for a, b, c in zip(share, *ratios, strict=True)]
        table.add_row(stem, *cells)
    Console(width=160).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
