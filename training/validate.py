"""Scores on excerpts of real songs, while training: a guide for choosing checkpoints.

Published figures come from `tfswa-sep eval` on whole songs, never from here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor, nn

from tfswa_sep.model.config import STEMS
from tfswa_sep.model.transform import separate_waveform

SAMPLE_RATE = 44_100  # Hz


def load_stems(song: Path) -> Tensor:
    """(s, c, n) at 44.1 kHz; a stem without a file is silent."""
    found = {path.stem: path for path in sorted(song.iterdir()) if path.stem in STEMS}
    arrays = {}
    for name, path in found.items():
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        audio = soxr.resample(audio, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else audio
        arrays[name] = np.broadcast_to(audio.T, (2, len(audio)))
    if not arrays:
        raise ValueError(f"{song} holds no stem: expected {', '.join(STEMS)} as wav, flac, opus, ogg or mp3")
    length = min(array.shape[1] for array in arrays.values())
    stems = np.zeros((len(STEMS), 2, length), np.float32)
    for i, name in enumerate(STEMS):
        if name in arrays:
            stems[i] = arrays[name][:, :length]
    return torch.from_numpy(stems)


def sdr(reference: Tensor, estimate: Tensor) -> float:
    """Global SDR in dB, all channels together (uSDR, Mitsufuji et al. 2021, arXiv:2108.13559)."""
    error = (reference - estimate).square().sum()
    return float(10 * torch.log10(reference.square().sum() / error.clamp(min=1e-12)))


class Validation:
    """The loudest-voiced stretch of each song under a folder, decoded once."""

    def __init__(self, folder: Path, *, seconds: float) -> None:
        self.songs: dict[str, Tensor] = {}
        n = round(seconds * SAMPLE_RATE)
        for song in sorted(path for path in folder.iterdir() if path.is_dir()):
            stems = load_stems(song)
            blocks = stems.square().sum(dim=1).unfold(1, n, n // 4).mean(dim=-1)  # (s, position)
            # Where every stem sounds, as far as that can be had: the weakest stem decides.
            weakest = blocks[blocks.sum(dim=1) > 0].clamp(min=1e-9).log().min(dim=0).values
            start = int(weakest.argmax()) * (n // 4)
            self.songs[song.name] = stems[:, :, start : start + n].clone()

    @torch.inference_mode()
    def score(self, network: nn.Module) -> dict[str, float]:
        """SDR above the mixture's own (dB): a stem's mean over its songs, and the mean of these."""
        device = next(network.parameters()).device
        gains: dict[str, list[float]] = {name: [] for name in STEMS}
        for stems in self.songs.values():
            stems = stems.to(device)
            mixture = stems.sum(dim=0)
            estimates = separate_waveform(network, mixture[None])[0]
            for name, stem, estimate in zip(STEMS, stems, estimates, strict=True):
                if stem.abs().max() > 0:
                    gains[name].append(sdr(stem, estimate) - sdr(stem, mixture))
        means = {name: float(np.mean(values)) for name, values in gains.items()}
        return {**means, "mean": float(np.mean(list(means.values())))}
