"""Compare the metrics of `tfswa-sep eval` with their reference implementations on real songs.

    pip install librosa torch-log-wmse torchaudio
    python -m training.analysis.metric_parity FOLDER

FOLDER/<song>/<stem>.* are songs with their stems. Estimates have another gain, leakage, an echo and noise. The table
gives the largest difference per metric and stem; it is an error if one exceeds 0.001.

    SDR, ISR, SIR, SAR v4   museval, in every frame
    SI-SDR, SI-SAR          fast_bss_eval; its SAR also counts interference as signal, which is taken out
    logWMSE                 torch-log-wmse
    bleedless, fullness     Music-Source-Separation-Training's definition, with librosa's mel filters
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import fast_bss_eval
import librosa
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch_log_wmse import LogWMSE

from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.evaluation import bsseval, perceptual
from tfswa_sep.evaluation.metrics import si_sdr
from tfswa_sep.evaluation.multitrack import Song, find_songs

Signal = NDArray[np.float64]  # (c, n)

TOLERANCE = 1e-3
SEEDS = (1, 2)  # of estimates


def estimates(true: dict[str, Signal], seed: int) -> dict[str, Signal]:
    """An estimate of every stem, with all that separators do wrong."""
    rng, mixture = np.random.default_rng(seed), np.sum(list(true.values()), axis=0)
    made = {}
    for stem, signal in true.items():
        gain, leakage, echo, noise = rng.uniform(0.05, 0.3, 4)
        wrong = leakage * mixture + echo * np.roll(signal, 37, axis=1)
        made[stem] = (1 - gain) * signal + wrong + 0.01 * noise * rng.normal(size=signal.shape)
    return made


def differences(song: Song, seconds: float) -> Iterator[tuple[str, str, float]]:
    """(metric, stem, difference) of one song."""
    frames = round(seconds * SAMPLE_RATE)
    feeds = {stem: feed for stem, feed in song.truths(SAMPLE_RATE).items() if stem in song.files}
    true = {stem: bsseval.round_to_16_bits(feed.take(frames).astype(float)) for stem, feed in feeds.items()}
    true = {stem: signal[:, : feeds[stem].frames] for stem, signal in true.items() if signal.any()}
    mixture = np.sum(list(true.values()), axis=0)
    for seed in SEEDS:
        guess = estimates(true, seed)
        one, two = ({stem: signal.T for stem, signal in side.items()} for side in (true, guess))
        ours, _ = bsseval.museval_frames(one, two, SAMPLE_RATE)
        theirs, _ = bsseval.package_frames(one, two, SAMPLE_RATE)
        for stem, ratios in theirs.items():
            for name, values in ratios.items():
                yield f"{name.upper()} v4", stem, float(np.nanmax(np.abs(ours[stem][name] - values)))
        for stem, metric, value, expected in _whole_song(true, guess, mixture):
            yield metric, stem, abs(value - expected)


def _whole_song(
    true: dict[str, Signal], guess: dict[str, Signal], mixture: Signal
) -> Iterator[tuple[str, str, float, float]]:
    """(stem, metric, our value, the reference's)."""
    stems = list(true)
    flat = [np.stack([side[stem].ravel() for stem in stems]) for side in (true, guess)]
    decibels = fast_bss_eval.si_bss_eval_sources(*flat, compute_permutation=False, zero_mean=False)
    sdr, _, sar = (10 ** (np.asarray(each) / 10) for each in decibels)
    si_sar = 10 * np.log10(sdr / (1 + sdr) * (1 + sar))
    log_wmse = LogWMSE()
    for number, stem in enumerate(stems):
        signal, estimate = true[stem], guess[stem]
        yield (
            stem,
            "SI-SDR",
            si_sdr(*(each.astype(np.float32) for each in (signal, estimate))) or 0.0,
            float(decibels[0][number]),
        )
        ours = perceptual.si_sar(list(true.values()), signal, estimate)
        yield stem, "SI-SAR", ours or 0.0, float(si_sar[number])
        tensors = (torch.from_numpy(each)[None] for each in (mixture, estimate[:, None], signal[:, None]))
        yield (
            stem,
            "logWMSE",
            perceptual.log_wmse(mixture, signal, estimate, SAMPLE_RATE),
            float(log_wmse(*tensors)),
        )
        both = perceptual.bleedless_fullness(signal, estimate, SAMPLE_RATE)
        for name, value, expected in zip(
            ("bleedless", "fullness"), both, _bleed(signal, estimate), strict=True
        ):
            yield stem, name, value, expected


def _bleed(reference: Signal, estimate: Signal) -> tuple[float, float]:
    """Bleedless and fullness in float64."""
    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=4096, n_mels=512, dtype=np.float64)
    levels = []
    for signal in (reference, estimate):
        spectra = abs(librosa.stft(signal, n_fft=4096, hop_length=1024, pad_mode="constant"))
        mel = filters @ spectra.astype(np.float64)
        levels.append(librosa.amplitude_to_db(mel, amin=1e-10, top_db=80))
    change = levels[1] - levels[0]
    excess, lack = change[change > 0], -change[change < 0]
    return 100 / (1 + float(excess.mean())), 100 / (1 + float(lack.mean()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="FOLDER", help="songs, as for tfswa-sep eval --data")
    parser.add_argument("--songs", type=int, default=5, help="number of songs (default 5)")
    parser.add_argument("--seconds", type=float, default=7, help="of each song (default 7)")
    options = parser.parse_args(arguments)
    largest: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for song in find_songs(options.data)[: options.songs]:
        for metric, stem, difference in differences(song, options.seconds):
            largest[metric][stem] = max(largest[metric][stem], difference)
    stems = list(dict.fromkeys(stem for row in largest.values() for stem in row))
    table = Table("metric", *stems, title="Largest difference from the reference implementation")
    for metric, row in largest.items():
        table.add_row(metric, *(f"{row[stem]:.1e}" if stem in row else "-" for stem in stems))
    Console().print(table)
    return int(max(max(row.values()) for row in largest.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
