"""Scores on excerpts of real songs during training, for choosing checkpoints.

The best checkpoint has the highest mean SDR, over songs and then over targets. It is computed from every sample
of every excerpt, and so distinguishes checkpoints better than the medians that are logged with it.
Published scores always come from `tfswa-sep eval` on whole songs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.evaluation.bsseval import frame_sdr
from tfswa_sep.evaluation.compare import bootstrap, mean_of_stems
from tfswa_sep.evaluation.metrics import RunningScore
from tfswa_sep.inference.overlap_add import SegmentPlan, overlap_add
from tfswa_sep.model.stft_torch import separate_waveform

FULL_SCALE = 32_768  # 16 bits


class Validation:
    """Songs or excerpts of them, decoded once and kept in 16 bits; in an excerpt, the weakest stem is loudest.

    Args:
        songs: Song name -> function that reads its stems (s, c, n).
        targets: Names of the k targets, which are sums of stems.
        matrix: (k, s), which stems each target is the sum of.
        seconds: Length of the excerpts; None means whole songs, which need 42 MB per minute of 4 stems.
        plan: How whole songs are cut, so that memory does not grow with their length; excerpts are not cut.
    """

    def __init__(
        self,
        songs: Mapping[str, Callable[[], Tensor]],
        *,
        targets: tuple[str, ...],
        matrix: Tensor,
        seconds: float | None,
        plan: SegmentPlan | None = None,
    ) -> None:
        self.targets, self.matrix = targets, matrix
        self.plan = plan if seconds is None else None
        self._stems: dict[str, Tensor] = {}  # (s, c, n) int16: 0.7 MB per second for 4 stems
        for name, read in sorted(songs.items()):
            stems = read()
            n = stems.shape[-1] if seconds is None else min(round(seconds * SAMPLE_RATE), stems.shape[-1])
            hop = max(n // 4, 1)
            power = stems.square().sum(dim=1).unfold(1, n, hop).mean(dim=-1)  # (s, position)
            # Stems that the song lacks are ignored.
            levels = power[power.sum(dim=1) > 0].clamp(min=1e-9).log()
            start = int(levels.min(dim=0).values.argmax()) * hop if len(levels) else 0
            excerpt = stems[:, :, start : start + n] * FULL_SCALE
            self._stems[name] = excerpt.round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16)

    @property
    def songs(self) -> list[str]:
        """Names of the songs, sorted."""
        return list(self._stems)

    def excerpt(self, song: str) -> tuple[Tensor, Tensor]:
        """Return a song's mixture (c, n) and targets (k, c, n)."""
        stems = self._stems[song].float() / FULL_SCALE
        return stems.sum(dim=0), torch.einsum("ks,scn->kcn", self.matrix, stems)

    @torch.inference_mode()
    def score(self, network: nn.Module) -> dict[str, float]:
        """Score a network. A target counts only in songs that contain it together with something else.

        Returns:
            Each target's mean SDR over the songs in dB, under its name, and their mean, under "mean". Also, as
            "vocals low", "mean high" and so on:
                low, high      95 % bootstrap interval over the songs
                median         median over the songs of each song's median over frames of 1 s
                kept, leaked   the shares of `tfswa_sep.evaluation.metrics` (targets only)
        """
        sdrs = np.full((len(self.songs), len(self.targets)), np.nan)
        medians, kept, leaked = (np.full_like(sdrs, np.nan) for _ in range(3))
        for i, song in enumerate(self.songs):
            mixture, targets = (part.numpy() for part in self.excerpt(song))
            estimates = self.separate(network, song).cpu().numpy()
            for j, (target, estimate) in enumerate(zip(targets, estimates, strict=True)):
                running = RunningScore()
                running.add(target, mixture - target, estimate)
                if running.is_silent or running.is_alone:
                    continue
                sdrs[i, j] = running.sdr()
                kept[i, j], leaked[i, j] = running.shares()
                frames = frame_sdr(target.T.astype(float), estimate.T.astype(float), SAMPLE_RATE)
                frames = frames[np.isfinite(frames)]
                medians[i, j] = np.median(frames) if frames.size else np.nan
        scores: dict[str, float] = {}
        scored = ~np.isnan(sdrs).all(axis=0)
        for j in map(int, np.flatnonzero(scored)):
            name = self.targets[j]
            scores |= _summarize(name, sdrs[:, [j]], medians[:, [j]])
            scores[f"{name} kept"] = float(np.nanmean(kept[:, j]))
            scores[f"{name} leaked"] = float(np.nanmean(leaked[:, j]))
        return scores | (_summarize("mean", sdrs[:, scored], medians[:, scored]) if scores else {})

    @torch.inference_mode()
    def separate(self, network: nn.Module, song: str) -> Tensor:
        """Estimate the targets (k, c, n) of a song's excerpt."""
        device = next(network.parameters()).device
        mixture = self.excerpt(song)[0]
        if self.plan is None:
            return separate_waveform(network, mixture[None].to(device))[0]

        def process(segments: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():  # in force only in the thread that set it, and this may be another
                stems = separate_waveform(network, torch.from_numpy(segments).to(device))
            return np.asarray(stems.cpu())

        blocks = overlap_add([mixture.numpy()], process, self.plan)
        return torch.from_numpy(np.concatenate(list(blocks), axis=-1))


def _summarize(name: str, sdrs: NDArray[np.float64], medians: NDArray[np.float64]) -> dict[str, float]:
    """Average over some targets: (songs, k) each, NaN where a song lacks a target."""
    low, high = bootstrap(sdrs)
    columns = [column[~np.isnan(column)] for column in medians.T]
    median = float(np.mean([np.median(column) if column.size else np.nan for column in columns]))
    return {name: mean_of_stems(sdrs), f"{name} low": low, f"{name} high": high, f"{name} median": median}
