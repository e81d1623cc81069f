"""Compare the metrics of `tfswa-sep eval` with their reference implementations on real songs.

    pip install librosa torch-log-wmse torchaudio
    tfswa-sep eval --data FOLDER --model small --out ESTIMATES
    python -m training.analysis.metric_parity FOLDER --estimates ESTIMATES

FOLDER/<song>/<stem>.* are songs with their stems. Scored are the estimates, or without them made-up ones with another
gain, leakage, an echo and noise; and by BSSEval the unseparated mixture, too. The output is a Markdown table of the
largest difference per metric and stem. The exit code is 1 if one exceeds 0.001, or for BSSEval 1e-6, and 1e-4 in songs
with a stem whose channels are identical, where museval's equations are singular.

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
from torch_log_wmse import LogWMSE

from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.evaluation import bsseval, perceptual
from tfswa_sep.evaluation.metrics import si_sdr
from tfswa_sep.evaluation.multitrack import Feed, Song, find_songs, stem_files

Signal = NDArray[np.float64]  # (c, n)
Signals = dict[str, Signal]

BSSEVAL = ("SDR v4", "ISR v4", "SIR v4", "SAR v4")
SINGULAR = ", a stem with identical channels"
TOLERANCES = dict.fromkeys(BSSEVAL, 1e-6) | {metric + SINGULAR: 1e-4 for metric in BSSEVAL}  # others: 1e-3


def made_up(true: Signals, seed: int = 1) -> Signals:
    """An estimate of every stem, with all that separators do wrong."""
    rng, mixture = np.random.default_rng(seed), np.sum(list(true.values()), axis=0)
    made = {}
    for stem, signal in true.items():
        gain, leakage, echo, noise = rng.uniform(0.05, 0.3, 4)
        wrong = leakage * mixture + echo * np.roll(signal, 37, axis=1)
        made[stem] = (1 - gain) * signal + wrong + 0.01 * noise * rng.normal(size=signal.shape)
    return made


def differences(song: Song, folder: Path | None, seconds: float) -> Iterator[tuple[str, str, float]]:
    """(metric, stem, difference) of one song, for its estimates in `folder` or made-up ones, and for the mixture."""
    frames = round(seconds * SAMPLE_RATE)
    feeds = {stem: feed for stem, feed in song.truths(SAMPLE_RATE).items() if stem in song.files}
    true = {stem: bsseval.round_to_16_bits(feed.take(frames).astype(float)) for stem, feed in feeds.items()}
    frames = min(frames, *(feed.frames for feed in feeds.values()))
    true = {stem: signal[:, :frames] for stem, signal in true.items() if signal[:, :frames].any()}
    mixture = np.sum(list(true.values()), axis=0)
    if folder is None:
        guess = made_up(true)
    else:
        files = stem_files(folder / song.name)
        guess = {stem: Feed([files[stem]], SAMPLE_RATE).take(frames).astype(float) for stem in true}
    yield from _whole_song(true, guess, mixture)
    yield from _framewise(true, guess)
    yield from _framewise(true, dict.fromkeys(true, mixture))


def _framewise(true: Signals, guess: Signals) -> Iterator[tuple[str, str, float]]:
    one, two = ({stem: signal.T for stem, signal in side.items()} for side in (true, guess))
    singular = any(np.array_equal(*signal) for signal in true.values())
    ours, _ = bsseval.museval_frames(one, two, SAMPLE_RATE)
    theirs, _ = bsseval.package_frames(one, two, SAMPLE_RATE)
    for stem, ratios in theirs.items():
        for metric, values in zip(BSSEVAL, ratios.values(), strict=True):
            found = ours[stem][metric[:3].lower()]
            both = np.isfinite(found) & np.isfinite(values)
            alike = np.array_equal(np.isfinite(found), np.isfinite(values))
            largest = float(abs(found[both] - values[both]).max(initial=0)) if alike else np.inf
            yield metric + SINGULAR * singular, stem, largest


def _whole_song(true: Signals, guess: Signals, mixture: Signal) -> Iterator[tuple[str, str, float]]:
    flat = [np.stack([side[stem].ravel() for stem in true]) for side in (true, guess)]
    decibels = fast_bss_eval.si_bss_eval_sources(*flat, compute_permutation=False, zero_mean=False)
    sdr, _, sar = (10 ** (np.asarray(each) / 10) for each in decibels)
    si_sar = 10 * np.log10(sdr / (1 + sdr) * (1 + sar))
    log_wmse = LogWMSE()
    for number, (stem, signal) in enumerate(true.items()):
        estimate = guess[stem]
        tensors = (torch.from_numpy(each)[None] for each in (mixture, estimate[:, None], signal[:, None]))
        single = (each.astype(np.float32) for each in (signal, estimate))
        yield "SI-SDR", stem, abs((si_sdr(*single) or np.nan) - decibels[0][number])
        found = perceptual.si_sar(list(true.values()), signal, estimate)
        yield "SI-SAR", stem, abs((found or np.nan) - si_sar[number])
        weighted = perceptual.log_wmse(mixture, signal, estimate, SAMPLE_RATE)
        yield "logWMSE", stem, abs(weighted - float(log_wmse(*tensors)))
        both = perceptual.bleedless_fullness(signal, estimate, SAMPLE_RATE)
        for name, value, expected in zip(
            ("bleedless", "fullness"), both, _bleed(signal, estimate), strict=True
        ):
            yield name, stem, abs(value - expected)


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
    parser.add_argument(
        "--estimates", type=Path, metavar="FOLDER", help="their separated stems, <song>/<stem>.*"
    )
    parser.add_argument("--songs", type=int, default=10, help="number of songs (default 10)")
    parser.add_argument("--seconds", type=float, default=7, help="of each song (default 7)")
    options = parser.parse_args(arguments)
    largest: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for song in find_songs(options.data)[: options.songs]:
        for metric, stem, difference in differences(song, options.estimates, options.seconds):
            largest[metric][stem] = max(largest[metric][stem], difference)
    stems = list(dict.fromkeys(stem for row in largest.values() for stem in row))
    print(f"| largest difference | {' | '.join(stems)} |\n| --- |{' ---: |' * len(stems)}")
    for metric, row in sorted(largest.items(), key=lambda item: SINGULAR in item[0]):
        cells = (f"{row[stem]:.0e}" if stem in row else "-" for stem in stems)
        print(f"| {metric} | {' | '.join(cells)} |")
    return int(any(not max(row.values()) <= TOLERANCES.get(metric, 1e-3) for metric, row in largest.items()))


if __name__ == "__main__":
    sys.exit(main())
