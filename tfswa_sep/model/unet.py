"""TFSWA-UNet: the spectrum of the mixture in, the spectra of the stems out.

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
                │ one head per stem bounded masks, and filters for low bins
                ▼
            stems (b, s, 2c, bins, t)

Axis letters: see `tfswa_sep.model.config`. Real and imaginary parts are channels (c0 re, c0 im, c1 re,
c1 im), so that an exported graph needs no complex numbers.
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
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    """Keep the running statistics of a stage's batch norms unchanged, even in training."""
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
    """A state dict with current names: older files call the input layer the stem."""
    return {re.sub(r"(^|\.)stem\.", r"\1split.", key): value for key, value in weights.items()}


class BandSplit(nn.Module):
    """Bands of bins -> tokens: one convolution per band, and a frequency embedding."""

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
        # Convolutions and attention alone cannot tell low frequencies from high ones.
        self.frequency = nn.Parameter(torch.zeros(1, dim, config.tokens, 1))

    def forward(self, bands: list[Tensor]) -> Tensor:
        """(b, features, bins of the band, t) per band -> (b, d, tokens, t)."""
        parts = [conv(x) for conv, x in zip(self.convs, bands, strict=True)]
        return torch.relu(self.norm(torch.cat(parts, dim=2)) + self.frequency)


class StackedBands(nn.Module):
    """Equal sub-bands stacked as features of one convolution."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        features = sum(config.feature_count(band) for band in config.bands)
        self.conv = nn.Conv2d(features, config.dims[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(config.dims[0])

    def forward(self, bands: list[Tensor]) -> Tensor:
        """(b, features, bins / sub-bands, t) per band -> (b, d, bins / sub-bands, t)."""
        return torch.relu(self.norm(self.conv(torch.cat(bands, dim=1))))


class StemHead(nn.Module):
    """Tokens -> one stem's unbounded masks, and its filters in bands that have them."""

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
            for band, conv in zip(self.bands, self.convs, strict=True):  # filters start at zero
                cast(nn.Conv2d, conv).weight[outputs * band.stride :] = 0
                cast(Tensor, conv.bias)[outputs * band.stride :] = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b, d, tokens, t) -> (b, parts * bins per token, tokens, t) per band, masks before filters."""
        return [conv(part) for conv, part in zip(self.convs, self.rows(self.hidden(x)), strict=True)]

    def rows(self, x: Tensor) -> Sequence[Tensor]:
        """(b, d, tokens, t) -> the rows of each band."""
        # Not slices: each one's gradient is as large as the whole, which doubled the heads' time.
        tokens = [band.tokens for band in self.bands]
        return [x] * len(tokens) if self.stacked else torch.split_with_sizes(x, tokens, dim=2)


def run_heads_together(heads: Sequence[StemHead], x: Tensor) -> list[Tensor]:
    """All heads as a few wide convolutions: half the time of one head after the other (measured).

    The weights and the batch norms' statistics stay those of the heads.
    (b, d, tokens, t) -> (b, s * parts * bins per token, tokens, t) per band.
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
    values = []
    for i, part in enumerate(heads[0].rows(torch.relu_(x))):
        outs = [cast(nn.Conv2d, head.convs[i]) for head in heads]
        weight, bias = (
            torch.cat([cast(Tensor, getattr(out, name)) for out in outs]) for name in ("weight", "bias")
        )
        values.append(functional.conv2d(part, weight, bias, groups=len(heads)))
    return values


def tokens_to_bins(values: Sequence[Tensor], bands: Sequence[Band], *, stems: int) -> list[Tensor]:
    """(b, s * parts * bins per token, tokens, t) per band -> (b, s, parts, bins of the band, t) per band."""
    return [
        rearrange(value, "b (s o p) f t -> b s o (f p) t", s=stems, p=band.stride)
        for band, value in zip(bands, values, strict=True)
    ]


class Upsample(nn.Module):
    """Double frequencies and frames: a 1x1 convolution, then a pixel shuffle."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(dim, 4 * out, 1, bias=False), nn.PixelShuffle(2), nn.BatchNorm2d(out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, f, t) -> (b, out, 2f, 2t)."""
        return self.conv(x)  # type: ignore[no-any-return]


class TfswaUNet(nn.Module):
    """The network.

    Args:
        config: Its shape.
        checkpointing: Save memory in training by computing each stage's activations a second time.
    """

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
            mixture: (b, 2c, n_fft / 2 + 1, t), t >= 1, real and imaginary parts as channels.

        Returns:
            (b, s, 2c, n_fft / 2 + 1, t), float32.
        """
        mixture = mixture.float()
        with torch.autocast(mixture.device.type, enabled=False):  # small powers need float32
            bands = band_features(mixture[:, :, : self.config.bins], self.config)
        values = self.raw_masks(bands)
        with torch.autocast(mixture.device.type, enabled=False):
            return self.mask(values, mixture)

    def raw_masks(self, bands: list[Tensor]) -> list[Tensor]:
        """Features -> unbounded masks and filters.

        (b, features, bins of the band, t) per band -> (b, s * parts * bins per token, tokens, t) per band, in
        float32 except in training with autocast.
        """
        trunk = self.trunk(bands)
        heads = [cast(StemHead, head) for head in self.heads]
        # Batch norms that synchronise processes cannot be concatenated.
        if self.training and all(type(head.hidden[1]) is nn.BatchNorm2d for head in heads):
            return run_heads_together(heads, trunk)
        # bf16 heads would double the error of a bf16 trunk from 4e-4 to 8e-4 of full scale (measured).
        with torch.autocast(trunk.device.type, enabled=False):
            values = [head(trunk.float()) for head in heads]
            return [torch.cat(stems, dim=1) for stems in zip(*values, strict=True)]

    def trunk(self, bands: list[Tensor]) -> Tensor:
        """All but the heads: (b, features, bins of the band, t) per band -> (b, d, tokens, t)."""
        t = bands[0].shape[3]
        if missing := -t % self.config.frame_multiple:
            bands = [functional.pad(x, (0, missing)) for x in bands]
        x = self.split(bands)
        skips = []
        for stage, down in zip(self.encoder, [*self.down, None], strict=True):
            x = self._run_stage(stage, x)
            if down is not None:
                skips.append(x)
                x = down(x)
        x = self._run_stage(self.decoder[-1], x)
        for i in reversed(range(len(self.up))):
            x = self._run_stage(self.decoder[i], torch.relu(self.up[i](x) + skips[i]))
        return x[..., :t]

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            y: Tensor = checkpoint(
                stage, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _frozen_statistics(stage))
            )
            return y
        return stage(x)  # type: ignore[no-any-return]

    def mask(self, values: Sequence[Tensor], mixture: Tensor) -> Tensor:
        """Apply the result of `raw_masks` to the mixture. Training compiles this method.

        (b, s * parts * bins per token, tokens, t) per band, (b, 2c, bins + 1, t) -> (b, s, 2c, bins + 1, t).
        """
        parts = self.config.mask_parts
        by_bin = tokens_to_bins([value.float() for value in values], self.config.bands, stems=len(self.heads))
        masks = torch.cat([value[:, :, :parts] for value in by_bin], dim=3)
        filters = [value[:, :, parts:] for value in by_bin if value.shape[2] > parts]
        return apply_masks(masks, filters, mixture, self.config)
