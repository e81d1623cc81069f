"""TFSWA-UNet: the mixture's spectrum in, every stem's spectrum out.

            mixture (b, 2c, bins, t)
                │ features          compressed complex spectrum and magnitudes
                │ stem              bands of bins -> tokens
    ┌── stage 1 ┤
    │   down    ▼
    │┌─ stage 2 ┤                   strides of two along frequency and time
    ││  ...     ▼
    ││      bottleneck              the last stage, once as encoder, once as decoder
    │└─► + stage 2 decoder
    └──► + stage 1 decoder
                │ one head a stem   bounded masks
                ▼
            stems (b, s, 2c, bins, t)

Axis letters: see `tfswa_sep.model.config`. Real and imaginary parts are channels (c0 re, c0 im, c1 re,
c1 im), so that an exported graph holds no complex number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tfswa_sep.model.block import Stage
from tfswa_sep.model.config import (
    COMPRESSION,
    HIGHEST_LOGIT,
    MASK_FLOOR,
    POWER_FLOOR,
    SHARE_FLOOR,
    ModelConfig,
)


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


def spectral_features(mixture: Tensor, *, kind: str) -> Tensor:
    """What the stem sees of the mixture.

    (b, 2c, f, t) -> (b, features, f, t). Magnitudes |X|^0.3 of every channel and, for two channels, of
    their half sum and half difference (where a voice sits is a strong cue); `complex` puts the compressed
    real and imaginary parts in front.
    """
    real, imaginary = mixture[:, 0::2], mixture[:, 1::2]
    parts = [(real, imaginary)]
    if kind == "complex" and real.shape[1] == 2:
        parts += [((x[:, :1] + x[:, 1:]) / 2, (y[:, :1] + y[:, 1:]) / 2) for x, y in parts]
        parts += [((x[:, :1] - x[:, 1:]) / 2, (y[:, :1] - y[:, 1:]) / 2) for x, y in parts[:1]]
    powers = [x * x + y * y + POWER_FLOOR for x, y in parts]
    # exp(log) is several times faster than a power of any exponent in ONNX Runtime (measured).
    magnitudes = [torch.exp(torch.log(power) * (COMPRESSION / 2)) for power in powers]
    if kind == "magnitude":
        return magnitudes[0]
    scale = magnitudes[0] * torch.rsqrt(powers[0])
    return torch.cat([real * scale, imaginary * scale, *magnitudes], dim=1)


class BandStem(nn.Module):
    """Bands of bins -> tokens, each band with a convolution of its own, and an embedding of the frequency."""

    def __init__(self, config: ModelConfig, features: int) -> None:
        super().__init__()
        dim = config.dims[0]
        self.convs = nn.ModuleList(
            nn.Conv2d(features, dim, (band.stride, 3), stride=(band.stride, 1), padding=(0, 1))
            for band in config.bands
        )
        self.norm = nn.BatchNorm2d(dim)
        # Convolutions and attention cannot tell a low token from a high one by themselves.
        self.frequency = nn.Parameter(torch.zeros(1, dim, config.tokens, 1))

    def forward(self, bands: list[Tensor]) -> Tensor:
        """(b, features, bins of the band, t) each -> (b, d, tokens, t)"""
        parts = [conv(x) for conv, x in zip(self.convs, bands, strict=True)]
        return torch.relu(self.norm(torch.cat(parts, dim=2)) + self.frequency)


class StackStem(nn.Module):
    """Equal sub-bands stacked as features, all seen by one convolution."""

    def __init__(self, config: ModelConfig, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features * len(config.bands), config.dims[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(config.dims[0])

    def forward(self, bands: list[Tensor]) -> Tensor:
        """(b, features, bins / sub-bands, t) each -> (b, d, bins / sub-bands, t)"""
        return torch.relu(self.norm(self.conv(torch.cat(bands, dim=1))))


class StemHead(nn.Module):
    """Tokens -> the mask values of one stem's bins."""

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.bands, self.outputs, self.stacked = config.bands, outputs, config.stem == "stack"
        hidden = config.head_dim
        self.hidden = nn.Sequential(
            nn.Conv2d(config.dims[0], hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)
        )
        self.convs = nn.ModuleList(nn.Conv2d(hidden, outputs * band.stride, 1) for band in self.bands)

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, tokens, t) -> (b, outputs, bins, t)"""
        x = self.hidden(x)
        # Not a slice a band: the gradient of each is as large as the whole, and heads took twice as long.
        tokens = [band.tokens for band in self.bands]
        rows = [x] * len(tokens) if self.stacked else torch.split_with_sizes(x, tokens, dim=2)
        parts = [
            rearrange(conv(part), "b (o p) f t -> b o (f p) t", p=band.stride)
            for band, conv, part in zip(self.bands, self.convs, rows, strict=True)
        ]
        return torch.cat(parts, dim=2)


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
        self.stem = (BandStem if config.stem == "bands" else StackStem)(config, config.feature_count)

        def stages(shift_first: bool) -> nn.ModuleList:
            shapes = zip(dims, config.convs, config.attentions, strict=True)
            return nn.ModuleList(
                Stage(dim, config, convs=convs, attentions=attentions, shift_first=shift_first)
                for dim, convs, attentions in shapes
            )

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
            x = spectral_features(mixture[:, :, : self.config.bins], kind=self.config.features)
        trunk = self.trunk([x[:, :, band.start : band.stop] for band in self.config.bands])
        # bf16 heads double the error that a bf16 trunk brings (measured: 8e-4 of full scale, without 4e-4).
        with torch.autocast(mixture.device.type, enabled=False):
            masks = torch.stack([head(trunk.float()) for head in self.heads], dim=1)
            return self.apply_masks(masks, mixture)

    def trunk(self, bands: list[Tensor]) -> Tensor:
        """(b, features, bins of the band, t) each -> (b, d, tokens, t), from which the heads make masks"""
        t = bands[0].shape[3]
        if missing := -t % self.config.frame_multiple:
            bands = [functional.pad(x, (0, missing)) for x in bands]
        x = self.stem(bands)
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

    def apply_masks(self, masks: Tensor, mixture: Tensor) -> Tensor:
        """Bound the masks, and multiply.

        masks (b, s, mask_parts, bins, t), mixture (b, 2c, bins + 1, t) -> (b, s, 2c, bins + 1, t)
        """
        masks = torch.cat([masks, masks[..., -1:, :]], dim=-2)  # Nyquist's bin goes with its neighbour
        if self.config.masks == "real":
            masks = masks.clamp(-HIGHEST_LOGIT, HIGHEST_LOGIT)
            gains = torch.softmax(masks, dim=1) if self.config.mixture_consistent else torch.sigmoid(masks)
            return gains.repeat_interleave(2, dim=2) * mixture[:, None]
        if self.config.masks == "signed":
            gains = torch.tanh(masks)
            if self.config.mixture_consistent:  # as below
                share = gains.abs() + SHARE_FLOOR
                gains = gains + share * (
                    (1 - gains.sum(dim=1, keepdim=True)) / share.sum(dim=1, keepdim=True)
                )
            return gains.repeat_interleave(2, dim=2) * mixture[:, None]
        real, imaginary = masks[:, :, 0::2], masks[:, :, 1::2]  # (b, s, c, f, t)
        radius = (real * real + imaginary * imaginary + MASK_FLOOR).sqrt()
        bound = torch.tanh(radius) / radius  # a magnitude of at most one
        real, imaginary = real * bound, imaginary * bound
        if self.config.mixture_consistent:
            # What the masks leave of one is shared out by their size (Wisdom et al., arXiv:1811.08521).
            share = radius * bound + SHARE_FLOOR
            share = share / share.sum(dim=1, keepdim=True)
            real = real + share * (1 - real.sum(dim=1, keepdim=True))
            imaginary = imaginary - share * imaginary.sum(dim=1, keepdim=True)
        mix_real, mix_imaginary = mixture[:, None, 0::2], mixture[:, None, 1::2]
        stems = torch.stack(
            [real * mix_real - imaginary * mix_imaginary, real * mix_imaginary + imaginary * mix_real], dim=3
        )
        return stems.flatten(2, 3)
