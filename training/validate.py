"""Scores on excerpts of real songs, while training: a guide for choosing checkpoints.

The best checkpoint is the one with the best mean over the targets of the mean SDR over the songs. It uses every
sample of every song, so that it tells two checkpoints apart better than medians do, which are reported beside it.
Published figures come from `tfswa-sep eval` on whole songs, never from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tfswa_sep.evaluation.bsseval import frame_sdr
from tfswa_sep.evaluation.compare import bootstrap, mean_of_stems
from tfswa_sep.evaluation.metrics import RunningScore
from tfswa_sep.model.stft_torch import separate_waveform

SAMPLE_RATE = 44_100  # Hz
FULL_SCALE = 32_768  # of 16 bits


class Validation:
    """The stretch of each song in which the weakest stem is loudest, decoded once and kept in 16 bits.

    songs: name -> what reads its stems (s, c, n).  targets: names of the k sums of stems that are scored.
    matrix: (k, s), which stems are in which target.
    """

    def __init__(
        self,
        songs: Mapping[str, Callable[[], Tensor]],
        *,
        targets: tuple[str, ...],
        matrix: Tensor,
        seconds: float,
    ) -> None:
        self.targets, self.matrix = targets, matrix
        self._stems: dict[str, Tensor] = {}  # (s, c, n) int16: 1.4 MB for 4 stems of a second
        for name, read in sorted(songs.items()):
            stems = read()
            n = min(round(seconds * SAMPLE_RATE), stems.shape[-1])
            blocks = stems.square().sum(dim=1).unfold(1, n, max(n // 4, 1)).mean(dim=-1)  # (s, position)
            # Where every stem sounds, as far as that can be had: the weakest stem decides.
            weakest = blocks[blocks.sum(dim=1) > 0].clamp(min=1e-9).log()
            start = int(weakest.min(dim=0).values.argmax()) * max(n // 4, 1) if len(weakest) else 0
            excerpt = stems[:, :, start : start + n] * FULL_SCALE
            self._stems[name] = excerpt.round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16)

    @property
    def songs(self) -> list[str]:
        """Their names, sorted."""
        return list(self._stems)

    def excerpt(self, song: str) -> tuple[Tensor, Tensor]:
        """A song's mixture (c, n) and targets (k, c, n)."""
        stems = self._stems[song].float() / FULL_SCALE
        return stems.sum(dim=0), torch.einsum("ks,scn->kcn", self.matrix, stems)

    @torch.inference_mode()
    def score(self, network: nn.Module) -> dict[str, float]:
        """Every target's mean SDR over the songs (dB), under its name, and the mean of these ("mean").

        Beside each, under "vocals low", "mean high" and so on:
            low, high      95 % bootstrap interval over the songs
            median         median over the songs of each one's median over frames of 1 s
            kept, leaked   the shares of `tfswa_sep.evaluation.metrics`, of targets alone
        A target counts in the songs that have it beside something else.
        """
        sdrs = np.full((len(self.songs), len(self.targets)), np.nan)
        medians, kept, leaked = (np.full_like(sdrs, np.nan) for _ in range(3))
        for i, song in enumerate(self.songs):
            mixture, targets = (part.numpy() for part in self.excerpt(song))
            estimates = self.separate(network, song).cpu().numpy()
            for j, (target, estimate) in enumerate(zip(targets, estimates, strict=True)):
                sums = RunningScore()
                sums.add(target, mixture - target, estimate)
                if sums.is_silent or sums.is_alone:
                    continue
                sdrs[i, j] = sums.sdr()
                kept[i, j], leaked[i, j] = sums.shares()
                frames = frame_sdr(target.T.astype(float), estimate.T.astype(float), SAMPLE_RATE)
                frames = frames[np.isfinite(frames)]
                medians[i, j] = np.median(frames) if frames.size else np.nan
        found: dict[str, float] = {}
        known = ~np.isnan(sdrs).all(axis=0)
        for j, name in enumerate(self.targets):
            if not known[j]:
                continue
            found |= _summary(name, sdrs[:, [j]], medians[:, [j]])
            found |= {f"{name} kept": float(np.nanmean(kept[:, j]))}
            found |= {f"{name} leaked": float(np.nanmean(leaked[:, j]))}
        return found | (_summary("mean", sdrs[:, known], medians[:, known]) if found else {})

    @torch.inference_mode()
    def separate(self, network: nn.Module, song: str) -> Tensor:
        """The estimates (k, c, n) of a song's excerpt."""
        device = next(network.parameters()).device
        return separate_waveform(network, self.excerpt(song)[0][None].to(device))[0]


def _summary(name: str, sdrs: NDArray[np.float64], medians: NDArray[np.float64]) -> dict[str, float]:
    """The numbers of some targets, (songs, k) with NaN where a song lacks one, in the mean over them."""
    low, high = bootstrap(sdrs)
    columns = [column[~np.isnan(column)] for column in medians.T]
    middle = float(np.mean([np.median(column) if column.size else np.nan for column in columns]))
    return {name: mean_of_stems(sdrs), f"{name} low": low, f"{name} high": high, f"{name} median": middle}
