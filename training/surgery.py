"""A network grown from a smaller one that computes the same function.

Widening copies features: after Net2WiderNet (Chen et al., arXiv:1511.05641), every new feature is a copy of an
old one, and what reads the copies shares the old weight out among them. Copies would learn the same for ever,
so their shares get noise that cancels out: the function stays, the gradients differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfswa_sep.model.config import ModelConfig

NOISE = 0.25  # standard deviation of the noise that cancels out, in those of the weights


def is_wider(old: ModelConfig, new: ModelConfig) -> bool:
    """Whether `new` is `old` with more features, hidden rows or attention heads per stage."""
    pairs = [
        *zip(old.dims, new.dims, strict=False),
        *zip(old.tdfs, new.tdfs, strict=False),
        (old.heads, new.heads),
        (old.head_dim, new.head_dim),
    ]
    alike = (len(old.dims), len(old.tdfs)) == (len(new.dims), len(new.tdfs))
    return alike and all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def widened(
    weights: dict[str, Tensor],
    old: ModelConfig,
    new: ModelConfig,
    own: dict[str, Tensor],
    *,
    noise: float = NOISE,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The weights of a network `old` for one with more features, `new`, which computes the same.

    Args:
        weights: State dict of `old`.
        old: Its shape.
        new: The wider shape; features of an attention head keep their number, so heads grow with `dims`.
        own: State dict of a network of the new shape, for the shapes of its tensors.
        noise: Of the shares of copies, as a fraction of the standard deviation of each tensor.
        seed: Of that noise.

    Returns:
        A state dict; tensors without a counterpart in `own` are returned as they are.

    Raises:
        ValueError: Where features per attention head differ, so that heads cannot be copied.
    """
    for stage, blocks in enumerate(old.attentions):
        if blocks and old.dims[stage] * new.heads != new.dims[stage] * old.heads:
            raise ValueError(
                f"stage {stage} has {old.dims[stage] // old.heads} features per attention head,"
                f" the wider model {new.dims[stage] / new.heads:g}: change heads as dims"
            )
    generator = torch.Generator().manual_seed(seed)
    return {
        key: _widen(key, value, own[key], noise=noise, generator=generator) if key in own else value
        for key, value in weights.items()
    }


def _widen(key: str, value: Tensor, like: Tensor, *, noise: float, generator: torch.Generator) -> Tensor:
    """One tensor, at the shape of `like`: rows are copied, what reads copies is shared out among them."""
    if value.shape == like.shape:
        return value
    rows = _origins(len(value), len(like), groups=3 if ".qkv." in key else 1, run=4 if _shuffled(key) else 1)
    value = value[rows]
    reads = value.ndim > 1 and value.shape[1] != like.shape[1]
    if not reads:
        return value
    old, columns = value.shape[1], _origins(value.shape[1], like.shape[1])
    copies = torch.bincount(columns, minlength=old)
    copied = value[:, columns]
    if not _is_read_from(key):  # an embedding or a table: nothing sums over this axis
        return copied
    shape = (1, -1, *[1] * (value.ndim - 2))
    shares = copied / copies[columns].view(shape)
    extra = noise * value.std() * torch.randn(copied.shape, generator=generator)
    mean = torch.zeros_like(value).index_add_(1, columns, extra) / copies.view(shape)
    return shares + extra - mean[:, columns]


def _origins(old: int, new: int, *, groups: int = 1, run: int = 1) -> Tensor:
    """The old place that each of `new` places is a copy of.

    groups: of which each grows by itself, as queries, keys and values.  run: neighbours that stay together, as
    the four positions of a feature before a pixel shuffle.
    """
    place = torch.arange(new)
    group, place = place // (new // groups), place % (new // groups)
    feature = place // run % (old // groups // run)
    return group * (old // groups) + feature * run + place % run


def _shuffled(key: str) -> bool:
    """Whether the rows of a weight become positions (`Upsample`)."""
    return key.startswith("up.") and key.endswith("conv.0.weight")


def _is_read_from(key: str) -> bool:
    """Whether a tensor's second axis is summed over."""
    return key.endswith(".weight")
