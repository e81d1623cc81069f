"""The network as exported for inference: features of each band in, raw masks (and filters) of each band out.

It computes the same as TfswaUNet, but the heads of all stems are merged into one, and batch norms are folded into
adjacent layers. `tfswa_sep.inference.mask_apply` applies the masks.
"""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tfswa_sep.inference.features import band_features
from tfswa_sep.inference.stft_numpy import stft
from tfswa_sep.model.attention import QueryKeyValue
from tfswa_sep.model.blocks import DynamicFusion, FrequencyLinear, TfswaBlock
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.unet import BandSplit, StemHead, TfswaUNet, Upsample


def compute_features(mixture: NDArray[np.float32], config: ModelConfig) -> list[Tensor]:
    """Compute the network's input from samples (b, c, n): for each band (b, features, bins of the band, t)."""
    spectrum = stft(mixture, n_fft=config.n_fft, hop=config.hop)
    return [torch.from_numpy(band) for band in band_features(spectrum, config)]


class MaskNetwork(nn.Module):
    """For each band: (b, features, bins of the band, t) -> (b, s * parts * stride, tokens, t)."""

    def __init__(self, network: TfswaUNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.config = network.config
        for module in self.network.modules():
            fold_norms(module)
        for module in list(self.network.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, FrequencyLinear):
                    setattr(module, name, _PerFeatureMatMul(layer))
                elif isinstance(layer, QueryKeyValue):
                    setattr(module, name, _SplitQueryKeyValue(layer))
                elif isinstance(layer, nn.Linear):
                    setattr(module, name, _FlatLinear(layer))
        heads = [cast(StemHead, head) for head in self.network.heads]
        self.hidden = _merge_convs([_fold_after(head.hidden[0], head.hidden[1]) for head in heads], groups=1)
        self.outputs = nn.ModuleList(
            _merge_convs([cast(nn.Conv2d, head.convs[i]) for head in heads], groups=len(heads))
            for i in range(len(self.config.bands))
        )
        self.eval()

    def forward(self, *bands: Tensor) -> tuple[Tensor, ...]:
        """Compute the masks; see the class."""
        x = self.network.trunk(list(bands))
        masks, start = [], 0
        for band, output in zip(self.config.bands, self.outputs, strict=True):
            rows = x if self.config.split == "stack" else x[:, :, start : start + band.tokens]
            masks.append(output(torch.relu(self.hidden(rows))))
            start += band.tokens
        return tuple(masks)


class _FlatLinear(nn.Module):
    """A linear layer on a matrix of rows, exported as one Gemm instead of a MatMul and an Add."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. (..., d) -> (..., d_out)"""
        y: Tensor = self.layer(x.flatten(0, -2))
        return y.view(*x.shape[:-1], -1)


class _PerFeatureMatMul(nn.Module):
    """FrequencyLinear as one product per feature, which needs no transposed copy."""

    def __init__(self, layer: FrequencyLinear) -> None:
        super().__init__()
        self.squeeze, self.expand = layer.squeeze.weight, layer.expand.weight
        self.bias, self.scale = layer.squeeze.bias, layer.scale

    def forward(self, x: Tensor) -> Tensor:
        """Mix all frequencies. (b, d, f, t) -> (b, d, f, t)"""
        y = torch.relu(torch.matmul(self.squeeze, x) + self.bias[:, None])
        return x + torch.matmul(self.expand, y * self.scale[:, None, None])


class _SplitQueryKeyValue(nn.Module):
    """Separate layers for queries, keys and values, since splitting the output of one layer copies it."""

    def __init__(self, layer: QueryKeyValue) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for weight, bias in zip(layer.weight.chunk(3), layer.bias.chunk(3), strict=True):
            part = nn.Linear(layer.in_features, len(weight))
            part.weight, part.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
            self.layers.append(_FlatLinear(part))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute queries, keys and values. (..., d) -> three of (..., d)"""
        return tuple(layer(x) for layer in self.layers)


def fold_norms(module: nn.Module) -> None:
    """Fold the batch norms of a BandSplit, an Upsample or a TfswaBlock into its other layers."""
    if isinstance(module, BandSplit):
        module.convs = nn.ModuleList(_fold_after(c, module.norm) for c in module.convs)
        module.norm = nn.Identity()  # type: ignore[assignment]
    elif isinstance(module, Upsample):
        conv, _, norm = module.conv
        module.conv = nn.Sequential(_to_transposed(_fold_after(conv, norm, repeat=4)))
    elif isinstance(module, TfswaBlock):
        for i, attention in enumerate(module.attentions):
            _fold_before(module.norms[i if module.serial else 0], cast(nn.Module, attention.qkv))
        if not module.serial and isinstance(module.fusion, DynamicFusion):
            _fold_before(module.norms[0], module.fusion.weigh[0])
        module.norms = nn.ModuleList(nn.Identity() for _ in module.norms)
        norm, expand, *rest = module.feed_forward
        _fold_before(norm, expand)
        module.feed_forward = nn.Sequential(expand, *rest)


def _scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift (d,) of a batch norm as scale * x + shift."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _fold_after(conv: nn.Module, norm: nn.Module, *, repeat: int = 1) -> nn.Conv2d:
    """Fold a norm into the convolution before it; each of its features is repeated `repeat` times."""
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, scale, shift = (part.repeat_interleave(repeat) for part in parts)
    folded = copy.deepcopy(conv)
    folded.weight, folded.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, scale, shift
    )
    return folded


@torch.no_grad()
def _to_transposed(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Convert a 1x1 convolution and a pixel shuffle to one layer, which takes 0.6 of the time in ONNX Runtime."""
    dim, out = conv.in_channels, conv.out_channels // 4
    layer = nn.ConvTranspose2d(dim, out, 2, stride=2)
    assert layer.bias is not None and conv.bias is not None
    layer.weight.copy_(conv.weight.view(out, 2, 2, dim).permute(3, 0, 1, 2))
    layer.bias.copy_(conv.bias[::4])  # equal in the four positions of a feature
    return layer


@torch.no_grad()
def _fold_before(norm: nn.Module, layer: nn.Module) -> None:
    """Fold a norm into the linear layer or 1x1 convolution after it."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    scale, shift = _scale_shift(norm)
    weight = layer.weight.flatten(1)
    assert layer.bias is not None
    layer.bias.add_(weight @ shift)
    layer.weight.copy_((weight * scale).view_as(layer.weight))


@torch.no_grad()
def _merge_convs(convs: list[nn.Conv2d], *, groups: int) -> nn.Conv2d:
    """Merge 1x1 convolutions into one: of the same input (groups=1), or each of its own part of the input."""
    inputs = convs[0].in_channels * groups
    joined = nn.Conv2d(inputs, sum(conv.out_channels for conv in convs), 1, groups=groups)
    assert joined.bias is not None
    joined.weight.copy_(torch.cat([conv.weight for conv in convs]))
    joined.bias.copy_(torch.cat([cast(Tensor, conv.bias) for conv in convs]))
    return joined
