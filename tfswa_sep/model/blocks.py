"""The parts of a stage: residual convolutions, and the TFSWA block, which fuses the attentions.

Batch norms follow a convolution wherever possible, so that export and loading can fold them into it; activations
are ReLU because int8 kernels fuse it. Axis letters: see `tfswa_sep.model.config`.
"""

from __future__ import annotations

from functools import reduce

import torch
from einops import rearrange
from torch import Tensor, nn

from tfswa_sep.model.attention import FrequencyAttention, ShiftedWindowAttention, TimeAttention
from tfswa_sep.model.config import ModelConfig


class ConvBlock(nn.Module):
    """`convs` 3x3 convolutions with a residual connection around them."""

    def __init__(self, dim: int, convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(convs):
            layers += [nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)]
            if i + 1 < convs:
                layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, f, t) -> (b, d, f, t)."""
        return torch.relu(x + self.layers(x))


class FrequencyLinear(nn.Module):
    """A residual pair of linear layers over all frequencies of a frame, shared by all features.

    The TDF block of Choi et al., arXiv:1912.02591, section 3.3: it relates the harmonics of a voice, which the
    convolutions of the first stages are too small for. It starts as the identity.
    """

    def __init__(self, dim: int, rows: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(rows, hidden)
        self.scale = nn.Parameter(torch.ones(dim))  # per feature
        self.expand = nn.Linear(hidden, rows, bias=False)
        nn.init.zeros_(self.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, f, t) -> (b, d, f, t)."""
        t = x.shape[3]
        # With channels_last, as in training, this copies nothing, and one product serves all features and frames.
        y = torch.matmul(self.squeeze.weight, rearrange(x, "b d f t -> b f (t d)"))
        y = rearrange(torch.relu(y + self.squeeze.bias[:, None]), "b f (t d) -> b f t d", t=t) * self.scale
        y = torch.matmul(self.expand.weight, y.flatten(2))
        return x + rearrange(y, "b f (t d) -> b d f t", t=t)


class MeanFusion(nn.Module):
    """The mean of the branches."""

    def forward(self, x: Tensor, branches: list[Tensor]) -> Tensor:
        """Branches (b, f, t, d) -> their mean, (b, f, t, d)."""
        return torch.stack(branches).mean(dim=0)


class DynamicFusion(nn.Module):
    """A sum of the branches, weighted by the input: pooling, a small MLP, a softmax."""

    def __init__(self, dim: int, branches: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(dim, dim // 4), nn.ReLU(), nn.Linear(dim // 4, branches))

    def forward(self, x: Tensor, branches: list[Tensor]) -> Tensor:
        """Input x and branches, (b, f, t, d) each -> weighted sum of the branches, (b, f, t, d)."""
        weights = self.weigh(x.mean(dim=(1, 2))).softmax(dim=-1)  # (b, branches)
        parts = [branch * weights[:, i, None, None, None] for i, branch in enumerate(branches)]
        total: Tensor = reduce(torch.add, parts)
        return total


class TfswaBlock(nn.Module):
    """Attention over time, frequency and shifted windows, and a feed-forward layer, with residual connections.

    `dynamic` and `mean` fusion run the attentions in parallel on one normalised input; `serial` runs them one after
    the other, as the published network does, with a plain and a shifted window attention.
    """

    def __init__(self, dim: int, config: ModelConfig, *, shifted: bool) -> None:
        super().__init__()
        heads, window = config.heads, config.window
        self.serial = config.fusion == "serial"
        attentions: list[nn.Module] = []
        if "time" in config.branches:
            attentions.append(TimeAttention(dim, heads))
        if "frequency" in config.branches:
            attentions.append(FrequencyAttention(dim, heads))
        if "window" in config.branches:
            for shift in (False, True) if self.serial else (shifted,):
                attentions.append(ShiftedWindowAttention(dim, heads, window=window, shifted=shift))
        if not self.serial:
            several = config.fusion == "dynamic" and len(attentions) > 1
            self.fusion = DynamicFusion(dim, len(attentions)) if several else MeanFusion()
        self.attentions = nn.ModuleList(attentions)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(dim) for _ in (attentions if self.serial else attentions[:1])
        )
        self.feed_forward = nn.Sequential(
            nn.BatchNorm2d(dim), nn.Conv2d(dim, 2 * dim, 1), nn.ReLU(inplace=True), nn.Conv2d(2 * dim, dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, f, t) -> (b, d, f, t)."""
        if self.serial:
            for norm, attention in zip(self.norms, self.attentions, strict=True):
                y = attention(rearrange(norm(x), "b d f t -> b f t d"))
                x = x + rearrange(y, "b f t d -> b d f t")
        else:
            y = rearrange(self.norms[0](x), "b d f t -> b f t d")
            y = self.fusion(y, [attention(y) for attention in self.attentions])
            x = x + rearrange(y, "b f t d -> b d f t")
        return x + self.feed_forward(x)  # type: ignore[no-any-return]


def conv_sizes(convs: int) -> list[int]:
    """Convolutions in each ConvBlock of a stage: at most two, which trains best."""
    return [2] * (convs // 2) + [1] * (convs % 2)


class Stage(nn.Module):
    """The blocks of one resolution: convolutions, then attentions, then TDF."""

    def __init__(self, config: ModelConfig, stage: int, *, shift_first: bool) -> None:
        super().__init__()
        dim, hidden = config.dims[stage], config.tdfs[stage] if config.tdfs else 0
        blocks: list[nn.Module] = [ConvBlock(dim, size) for size in conv_sizes(config.convs[stage])]
        for i in range(config.attentions[stage]):
            blocks.append(TfswaBlock(dim, config, shifted=(i % 2 == 1) != shift_first))
        self.blocks = nn.ModuleList(blocks)
        self.tdf = FrequencyLinear(dim, config.rows >> stage, hidden) if hidden else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, f, t) -> (b, d, f, t)."""
        for block in self.blocks:
            x = block(x)
        return self.tdf(x)  # type: ignore[no-any-return]
