"""Widen a network without changing the function that it computes.

As in Net2WiderNet (Chen et al., arXiv:1511.05641), each new feature is a copy of an old one, and the weights that
read the copies share the old weight. Identical copies would always stay identical, so noise is added to the
shares of each weight that sums to zero: the function stays the same, but the gradients differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfswa_sep.model.config import ModelConfig

NOISE = 0.25  # standard deviation, relative to that of the weights


def is_wider(old: ModelConfig, new: ModelConfig) -> bool:
    """Return whether `new` is `old` with more features, hidden rows or attention heads per stage."""
    if (len(old.dims), len(old.tdfs)) != (len(new.dims), len(new.tdfs)):
        return False
    pairs = [
        *zip(old.dims, new.dims, strict=True),
        *zip(old.tdfs, new.tdfs, strict=True),
        (old.heads, new.heads),
        (old.head_dim, new.head_dim),
    ]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def widen(
    weights: dict[str, Tensor],
    old: ModelConfig,
    new: ModelConfig,
    own: dict[str, Tensor],
    *,
    noise: float = NOISE,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Convert the weights of a network for a wider one.

    Args:
        weights: State dict of the old network.
        old: Its config.
        new: The wider config, with as many features per attention head.
        own: State dict of a network with the new config, for the shapes.
        noise: Standard deviation of the noise on shared weights, relative to that of the weights.
        seed: Seed of the noise.

    Returns:
        A state dict; tensors that are not in `own` are returned unchanged.

    Raises:
        ValueError: The number of features per attention head differs.
    """
    for stage, blocks in enumerate(old.attentions):
        if blocks and old.dims[stage] * new.heads != new.dims[stage] * old.heads:
            raise ValueError(
                f"stage {stage} has {old.dims[stage] // old.heads} features per attention head,"
                f" the wider model {new.dims[stage] / new.heads:g}: scale heads with dims"
            )
    generator = torch.Generator().manual_seed(seed)
    return {
        key: _widen_tensor(key, value, own[key], noise=noise, generator=generator) if key in own else value
        for key, value in weights.items()
    }


def _widen_tensor(
    key: str, value: Tensor, like: Tensor, *, noise: float, generator: torch.Generator
) -> Tensor:
    """Widen a tensor to the shape of `like`: copy output rows, and share input columns among the copies."""
    if value.shape == like.shape:
        return value
    # An Upsample makes four positions of every feature's rows.
    run = 4 if key.startswith("up.") and key.endswith("conv.0.weight") else 1
    value = value[_copied_from(len(value), len(like), groups=3 if ".qkv." in key else 1, run=run)]
    if value.ndim < 2 or value.shape[1] == like.shape[1]:
        return value
    columns = _copied_from(value.shape[1], like.shape[1])
    copied = value[:, columns]
    if not key.endswith(".weight"):  # an embedding or a table: nothing sums over this axis
        return copied
    copies = torch.bincount(columns, minlength=value.shape[1])
    shape = (1, -1, *[1] * (value.ndim - 2))
    extra = noise * value.std() * torch.randn(copied.shape, generator=generator)
    mean = torch.zeros_like(value).index_add_(1, columns, extra) / copies.view(shape)
    return copied / copies[columns].view(shape) + extra - mean[:, columns]


def _copied_from(old: int, new: int, *, groups: int = 1, run: int = 1) -> Tensor:
    """Return the old index that each of the `new` indices is a copy of.

    Args:
        old: Old size of the axis.
        new: New size of the axis.
        groups: Parts of the axis that grow independently, such as queries, keys and values.
        run: Neighbours that stay together, such as the four positions of a feature before a pixel shuffle.
    """
    index = torch.arange(new)
    group, index = index // (new // groups), index % (new // groups)
    feature = index // run % (old // groups // run)
    return group * (old // groups) + feature * run + index % run
