"""Self-supervised pre-training: `training=pretrain` hides parts of mixtures, and the network fills them in.

Needs no stems. The trunk learns; a later run takes it over with `training.warm_start=.../last.ckpt`.
Sources: Pathak et al., arXiv:1604.07379 (filling in), and Huang et al., arXiv:2207.06405 (blocks of
spectrograms).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from tfswa_sep.model.mask_head import band_features
from tfswa_sep.model.unet import StemHead, TfswaUNet, by_bins

HIDDEN = 0.4  # share of the patches
PATCH = (32, 16)  # bins, frames: 690 Hz by 0.19 s


class MaskedSpectrogram(nn.Module):
    """The network's trunk, and a head of its own that predicts the magnitudes which were hidden from it."""

    def __init__(self, network: TfswaUNet) -> None:
        super().__init__()
        self.network = network
        network.heads.requires_grad_(False)  # no part of this: they are as a later run finds them
        bands = tuple(dataclasses.replace(band, taps=0) for band in network.config.bands)
        self.head = StemHead(dataclasses.replace(network.config, bands=bands), network.config.magnitudes)

    def forward(self, mixture: Tensor, generator: torch.Generator) -> Tensor:
        """Mean absolute error of the hidden magnitudes. (b, 2c, bins + 1, t) -> scalar"""
        config = self.network.config
        with torch.autocast(mixture.device.type, enabled=False):
            bands = band_features(mixture[:, :, : config.bins], config)
        magnitudes = torch.cat([band[:, -config.magnitudes :] for band in bands], dim=2)
        hidden = hide(magnitudes, generator=generator)
        seen = [
            part * ~hidden[:, :, band.start : band.stop]
            for band, part in zip(config.bands, bands, strict=True)
        ]
        trunk = self.network.trunk(seen)
        with torch.autocast(mixture.device.type, enabled=False):
            found = torch.cat(by_bins(self.head(trunk.float()), config.bands, stems=1), dim=3)[:, 0]
        error = (found - magnitudes).abs() * hidden
        loss: Tensor = error.sum() / (hidden.sum() * config.magnitudes).clamp(min=1)
        return loss


def hide(features: Tensor, *, generator: torch.Generator) -> Tensor:
    """Which positions to hide: (b, 1, bins, t), whole patches of them. features (b, features, bins, t)"""
    b, _, f, t = features.shape
    rows, columns = -(-f // PATCH[0]), -(-t // PATCH[1])
    chosen = torch.rand(b, 1, rows, columns, generator=generator) < HIDDEN
    patches = chosen.repeat_interleave(PATCH[0], dim=2).repeat_interleave(PATCH[1], dim=3)
    return patches[:, :, :f, :t].to(features.device)
