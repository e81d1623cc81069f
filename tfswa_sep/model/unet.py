"""TFSWA-UNet: the mixture's spectrum in, every stem's spectrum out.

            mixture (b, 2c, bins, t)
                │ features          compressed magnitudes, and phases of low bins
                │ split             bands of bins -> tokens
    ┌── stage 1 ┤
    │   down    ▼
    │┌─ stage 2 ┤                   strides of two along frequency and time
    ││  ...     ▼
    ││      bottleneck              the last stage, once as encoder, once as decoder
    │└─► + stage 2 decoder
    └──► + stage 1 decoder
                │ one head a stem   bounded masks, and filters of low bins
                ▼
            stems (b, s, 2c, bins, t)

Axis letters: see `tfswa_sep.model.config`. Real and imaginary parts are channels (c0 re, c0 im, c1 re,
c1 im), so that an exported graph holds no complex number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tfswa_sep.model.blocks import Stage
from tfswa_sep.model.config import Band, ModelConfig
from tfswa_sep.model.mask_head import apply_masks, band_features


@contextmanager
def _statistics_kept(stage: nn.Module) -> Iterator[None]:
    """While this lasts, batch norms of a stage in training leave their running statistics alone."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]


def with_current_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict, also of a file from when the input layer was called the stem, by today's names."""
    return {re.sub(r"(^|\.)stem\.", r"\1split.", key): value for key, value in weights.items()}


class BandSplit(nn.Module):
    """Bands of bins -> tokens, each band with a convolution of its own, and an embedding of the frequency."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dims[0]
        self.convs = nn.ModuleList(
            nn.Conv2d(
                config.feature_count(band), dim, (band.stride, 3), stride=(band.stride, 1), padding=(0, 1)
            )
            for band in config.bands
        )
        self.norm = nn.BatchNorm2d(dim)
        # Convolutions and attention cannot tell a low token from a high one by themselves.
        self.frequency = nn.Parameter(torch.zeros(1, dim, config.tokens, 1))

    def forward(self, bands: list[Tensor]) -> Tensor:
        """(b, features, bins of the band, t) each -> (b, d, tokens, t)"""
        parts = [conv(x) for conv, x in zip(self.convs, bands, strict=True)]
        return torch.relu(self.norm(torch.cat(parts, dim=2)) + self.frequency)


class StackedBands(nn.Module):
    """Equal sub-bands stacked as features, all seen by one convolution."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        features = sum(config.feature_count(band) for band in config.bands)
        self.conv = nn.Conv2d(features, config.dims[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(config.dims[0])

    def forward(self, bands: list[Tensor]) -> Tensor:
        """(b, features, bins / sub-bands, t) each -> (b, d, bins / sub-bands, t)"""
        return torch.relu(self.norm(self.conv(torch.cat(bands, dim=1))))


class StemHead(nn.Module):
    """Tokens -> what one stem's masks are made of, and its filters in bands that have them."""

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.bands, self.stacked = config.bands, config.split == "stack"
        hidden = config.head_dim
        self.hidden = nn.Sequential(
            nn.Conv2d(config.dims[0], hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(hidden, (outputs + config.filter_parts(band)) * band.stride, 1) for band in self.bands
        )
        with torch.no_grad():
            for band, conv in zip(self.bands, self.convs, strict=True):  # filters begin as nothing
                cast(nn.Conv2d, conv).weight[outputs * band.stride :] = 0
                cast(Tensor, conv.bias)[outputs * band.stride :] = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b, d, tokens, t) -> (b, parts * bins of a token, tokens, t) a band, masks before filters"""
        return [conv(part) for conv, part in zip(self.convs, self.rows(self.hidden(x)), strict=True)]

    def rows(self, x: Tensor) -> Sequence[Tensor]:
        """(b, d, tokens, t) -> the rows that each band's convolution sees"""
        # Not a slice a band: the gradient of each is as large as the whole, and heads took twice as long.
        tokens = [band.tokens for band in self.bands]
        return [x] * len(tokens) if self.stacked else torch.split_with_sizes(x, tokens, dim=2)


def all_heads(heads: Sequence[StemHead], x: Tensor) -> list[Tensor]:
    """Every head's values as few wide convolutions: half the time of a head after the other (measured).

    The weights stay those of the heads; a batch norm keeps statistics of its own.
    (b, d, tokens, t) -> (b, s * parts * bins of a token, tokens, t) a band
    """
    convs = [cast(nn.Conv2d, head.hidden[0]) for head in heads]
    norms = [cast(nn.BatchNorm2d, head.hidden[1]) for head in heads]
    x = functional.conv2d(x, torch.cat([conv.weight for conv in convs]))
    mean, var = (
        torch.cat([cast(Tensor, getattr(n, f"running_{name}")) for n in norms]) for name in ("mean", "var")
    )
    weight, bias = torch.cat([norm.weight for norm in norms]), torch.cat([norm.bias for norm in norms])
    training, eps = norms[0].training, norms[0].eps
    x = functional.batch_norm(x, mean, var, weight, bias, training, cast(float, norms[0].momentum), eps)
    if training:
        with torch.no_grad():
            for norm, own_mean, own_var in zip(
                norms, mean.chunk(len(heads)), var.chunk(len(heads)), strict=True
            ):
                cast(Tensor, norm.running_mean).copy_(own_mean)
                cast(Tensor, norm.running_var).copy_(own_var)
                cast(Tensor, norm.num_batches_tracked).add_(1)
    found = []
    for i, part in enumerate(heads[0].rows(torch.relu_(x))):
        outs = [cast(nn.Conv2d, head.convs[i]) for head in heads]
        weight, bias = (
            torch.cat([cast(Tensor, getattr(out, name)) for out in outs]) for name in ("weight", "bias")
        )
        found.append(functional.conv2d(part, weight, bias, groups=len(heads)))
    return found


def by_bins(values: Sequence[Tensor], bands: Sequence[Band], *, stems: int) -> list[Tensor]:
    """(b, s * parts * bins of a token, tokens, t) a band -> (b, s, parts, bins of the band, t) a band"""
    return [
        rearrange(value, "b (s o p) f t -> b s o (f p) t", s=stems, p=band.stride)
        for band, value in zip(bands, values, strict=True)
    ]


class Upsample(nn.Module):
    """Twice the frequencies and frames: a 1x1 convolution, then features become positions."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(dim, 4 * out, 1, bias=False), nn.PixelShuffle(2), nn.BatchNorm2d(out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, f, t) -> (b, out, 2f, 2t)"""
        return self.conv(x)  # type: ignore[no-any-return]


class TfswaUNet(nn.Module):
    """The network. `checkpointing` trades a second forward pass for the memory of the stages."""

    def __init__(self, config: ModelConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        config.check()
        self.config, self.checkpointing = config, checkpointing
        dims, last = config.dims, len(config.dims) - 1
        self.split = (BandSplit if config.split == "bands" else StackedBands)(config)

        def stages(shift_first: bool) -> nn.ModuleList:
            return nn.ModuleList(Stage(config, i, shift_first=shift_first) for i in range(len(dims)))

        self.encoder, self.decoder = stages(False), stages(True)
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dims[i], dims[i + 1], 2, stride=2, bias=False),
                nn.BatchNorm2d(dims[i + 1]),
                nn.ReLU(),
            )
            for i in range(last)
        )
        self.up = nn.ModuleList(Upsample(dims[i + 1], dims[i]) for i in range(last))
        self.heads = nn.ModuleList(StemHead(config, config.mask_parts) for _ in config.stems)

    def forward(self, mixture: Tensor) -> Tensor:
        """The spectrum of every stem.

        Args:
            mixture: (b, 2c, n_fft / 2 + 1, t) of any t >= 1, real and imaginary parts as channels.

        Returns:
            (b, s, 2c, n_fft / 2 + 1, t) in float32
        """
        mixture = mixture.float()
        with torch.autocast(mixture.device.type, enabled=False):  # powers of small numbers need float32
            bands = band_features(mixture[:, :, : self.config.bins], self.config)
        values = self.raw_masks(bands)
        with torch.autocast(mixture.device.type, enabled=False):
            return self.mask(values, mixture)

    def raw_masks(self, bands: list[Tensor]) -> list[Tensor]:
        """What the network makes of its features, before masks are bounded.

        (b, features, bins of the band, t) each -> (b, s * parts * bins of a token, tokens, t) each, float32
        except in training with autocast
        """
        trunk = self.trunk(bands)
        heads = [cast(StemHead, head) for head in self.heads]
        # Batch norms that several processes share cannot be put side by side.
        if self.training and all(type(head.hidden[1]) is nn.BatchNorm2d for head in heads):
            return all_heads(heads, trunk)
        # bf16 heads double the error that a bf16 trunk brings (measured: 8e-4 of full scale, without 4e-4).
        with torch.autocast(trunk.device.type, enabled=False):
            found = [head(trunk.float()) for head in heads]
            return [torch.cat(stems, dim=1) for stems in zip(*found, strict=True)]

    def trunk(self, bands: list[Tensor]) -> Tensor:
        """(b, features, bins of the band, t) each -> (b, d, tokens, t), from which the heads make masks"""
        t = bands[0].shape[3]
        if missing := -t % self.config.frame_multiple:
            bands = [functional.pad(x, (0, missing)) for x in bands]
        x = self.split(bands)
        skips = []
        for stage, down in zip(self.encoder, [*self.down, None], strict=True):
            x = self._run(stage, x)
            if down is not None:
                skips.append(x)
                x = down(x)
        x = self._run(self.decoder[-1], x)
        for i in reversed(range(len(self.up))):
            x = self._run(self.decoder[i], torch.relu(self.up[i](x) + skips[i]))
        return x[..., :t]

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            found: Tensor = checkpoint(
                stage, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(stage))
            )
            return found
        return stage(x)  # type: ignore[no-any-return]

    def mask(self, values: Sequence[Tensor], mixture: Tensor) -> Tensor:
        """The stems that `raw_masks` stand for; training compiles it.

        (b, s * parts * bins of a token, tokens, t) a band, (b, 2c, bins + 1, t) -> (b, s, 2c, bins + 1, t)
        """
        parts = self.config.mask_parts
        found = by_bins([value.float() for value in values], self.config.bands, stems=len(self.heads))
        masks = torch.cat([value[:, :, :parts] for value in found], dim=3)
        filters = [value[:, :, parts:] for value in found if value.shape[2] > parts]
        return apply_masks(masks, filters, mixture, self.config)
