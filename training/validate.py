"""Scores on excerpts of real songs, while training: a guide for choosing checkpoints.

Published figures come from `tfswa-sep eval` on whole songs, never from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tfswa_sep.evaluation.metrics import RunningScore, sdr
from tfswa_sep.model.stft_torch import separate_waveform

SAMPLE_RATE = 44_100  # Hz


class Validation:
    """The stretch of each song in which the weakest stem is loudest, decoded once.

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
        self.targets = targets
        self.songs: dict[str, tuple[Tensor, Tensor]] = {}  # mixture (c, n), targets (k, c, n)
        for name, read in sorted(songs.items()):
            stems = read()
            n = min(round(seconds * SAMPLE_RATE), stems.shape[-1])
            blocks = stems.square().sum(dim=1).unfold(1, n, max(n // 4, 1)).mean(dim=-1)  # (s, position)
            # Where every stem sounds, as far as that can be had: the weakest stem decides.
            weakest = blocks[blocks.sum(dim=1) > 0].clamp(min=1e-9).log()
            start = int(weakest.min(dim=0).values.argmax()) * max(n // 4, 1) if len(weakest) else 0
            excerpt = stems[:, :, start : start + n]
            self.songs[name] = excerpt.sum(dim=0), torch.einsum("ks,scn->kcn", matrix, excerpt)

    @torch.inference_mode()
    def score(self, network: nn.Module) -> dict[str, float]:
        """Every target's SDR above the mixture's own (dB), under its name, and the mean of these ("mean").

        "vocals kept" and "vocals leaked" are the shares of `tfswa_sep.evaluation.metrics`. A target's numbers
        are means over the songs that have it beside something else.
        """
        found: dict[str, list[float]] = {}
        for song, (mixture, targets) in self.songs.items():
            whole = mixture.numpy()
            for name, target, estimate in zip(
                self.targets, targets.numpy(), self.separate(network, song).cpu().numpy(), strict=True
            ):
                of_mixture, sums = sdr(target, whole), RunningScore()
                sums.add(target, whole - target, estimate)
                if of_mixture is not None and not sums.is_alone:
                    numbers = (sums.sdr() - of_mixture, *sums.shares())
                    for key, number in zip((name, f"{name} kept", f"{name} leaked"), numbers, strict=True):
                        found.setdefault(key, []).append(number)
        means = {key: float(np.mean(numbers)) for key, numbers in found.items()}
        gains = [means[name] for name in self.targets if name in means]
        return {**means, "mean": float(np.mean(gains))} if gains else {}

    @torch.inference_mode()
    def separate(self, network: nn.Module, song: str) -> Tensor:
        """The estimates (k, c, n) of a song's excerpt."""
        device = next(network.parameters()).device
        return separate_waveform(network, self.songs[song][0][None].to(device))[0]
