"""A network grown from a smaller one that computes the same function.

Widening copies features: after Net2WiderNet (Chen et al., arXiv:1511.05641), every new feature is a copy of an
old one, and what reads the copies shares the old weight out among them. Copies would learn the same for ever,
so their shares get noise that cancels out: the function stays, the gradients differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tfswa_sep.model.blocks import conv_sizes
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.unet import TfswaUNet

NOISE = 0.25  # standard deviation of the noise that cancels out, in those of the weights


def deepened(
    weights: dict[str, Any], old: ModelConfig, model: TfswaUNet
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The weights of a model `old` by their names in `model`, whose stages may have more convolutions.

    Blocks are numbered in a stage: those that `old` has keep their order. Those that it lacks begin as the
    identity, for the scale of their last norm is 0 (Goyal et al., arXiv:1706.02677, section 5.1), and their
    ReLU has nothing to cut off, since it follows another one. These scales are returned, too.
    The last stage's decoder begins with what attention gave, where that is not so: a stage of which the first
    block would be new is left out there.
    """
    own, new = model.state_dict(), model.config
    places, added = dict[str, str](), list[str]()
    for stage, (before, after) in enumerate(zip(old.convs, new.convs, strict=False)):
        sizes, left = conv_sizes(after), conv_sizes(before)
        attentions = [len(left), len(sizes)]  # where those of the attentions begin, then and now
        pairs, fresh = list[tuple[int, int]](), list[tuple[int, int]]()
        for place, size in enumerate(sizes):
            if left and left[0] == size:
                pairs.append((len(pairs), place))
                left.pop(0)
            else:
                fresh.append((place, size))
        last = stage == len(new.convs) - 1
        if left or (last and fresh and fresh[0][0] == 0):  # not those of `old` and more
            continue
        pairs += [(attentions[0] + i, attentions[1] + i) for i in range(old.attentions[stage])]
        for side in ("encoder", "decoder"):
            prefix = f"{side}.{stage}.blocks."
            places |= {f"{prefix}{a}.": f"{prefix}{b}." for a, b in pairs}
            added += [f"{prefix}{place}.layers.{3 * size - 2}.weight" for place, size in fresh]
    found = {}
    for key, value in weights.items():
        block = ".".join(key.split(".")[:4]) + "."
        found[key.replace(block, places.get(block, block), 1)] = value
    return found, {key: torch.zeros_like(own[key]) for key in added}


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
