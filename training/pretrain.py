"""Self-supervised pretraining (`training=pretrain`): the network fills in masked parts of mixtures.

Needs no stems. Start a separation run from the result with `training.warm_start=OUT/last.ckpt`.
Sources: Pathak et al., arXiv:1604.07379 (inpainting), and Huang et al., arXiv:2207.06405 (masked spectrograms).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from tfswa_sep.model.mask_head import band_features
from tfswa_sep.model.unet import StemHead, TfswaUNet, tokens_to_bins

MASK_RATIO = 0.4  # of the patches
PATCH = (32, 16)  # bins, frames: 690 Hz by 0.19 s


class MaskedSpectrogram(nn.Module):
    """The network's trunk with a head that predicts the masked magnitudes."""

    def __init__(self, network: TfswaUNet) -> None:
        super().__init__()
        self.network = network
        network.heads.requires_grad_(False)  # unused here
        bands = tuple(dataclasses.replace(band, taps=0) for band in network.config.bands)
        self.head = StemHead(dataclasses.replace(network.config, bands=bands), network.config.magnitudes)

    def forward(self, mixture: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean absolute error of the masked magnitudes. (b, 2c, bins + 1, t) -> scalar"""
        config = self.network.config
        with torch.autocast(mixture.device.type, enabled=False):
            bands = band_features(mixture[:, :, : config.bins], config)
        magnitudes = torch.cat([band[:, -config.magnitudes :] for band in bands], dim=2)
        masked = draw_mask(magnitudes, generator=generator)
        visible = [
            features * ~masked[:, :, band.start : band.stop]
            for band, features in zip(config.bands, bands, strict=True)
        ]
        trunk = self.network.trunk(visible)
        with torch.autocast(mixture.device.type, enabled=False):
            predicted = torch.cat(tokens_to_bins(self.head(trunk.float()), config.bands, stems=1), dim=3)[
                :, 0
            ]
        error = (predicted - magnitudes).abs() * masked
        loss: Tensor = error.sum() / (masked.sum() * config.magnitudes).clamp(min=1)
        return loss


def draw_mask(features: Tensor, *, generator: torch.Generator) -> Tensor:
    """Choose random patches to mask. (b, features, bins, t) -> (b, 1, bins, t), true where masked"""
    b, _, f, t = features.shape
    rows, columns = -(-f // PATCH[0]), -(-t // PATCH[1])
    chosen = torch.rand(b, 1, rows, columns, generator=generator) < MASK_RATIO
    mask = chosen.repeat_interleave(PATCH[0], dim=2).repeat_interleave(PATCH[1], dim=3)
    return mask[:, :, :f, :t].to(features.device)
