"""Checkpoints: written whole or not at all, averaged weights, and warm starts from whatever fits."""

from __future__ import annotations

import dataclasses
import json
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tfswa_sep.audio.atomic_file import atomic_write, remove_abandoned
from tfswa_sep.constants import ACCOMPANIMENT, VOCALS
from tfswa_sep.errors import InputError
from tfswa_sep.inference.metadata import KEY
from tfswa_sep.model.blocks import conv_sizes
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.unet import TfswaUNet, with_current_names
from training.surgery import is_wider, widened

# Layers that each band has of its own.
_BANDED = re.compile(r"(split|heads\.\d+)\.convs\.(\d+)\.(weight|bias)")


class Average:
    """Exponential moving average of weights and of the batch norms' statistics."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    def update(self, model: nn.Module, step: int) -> None:
        """Move a little towards the model."""
        decay = min(self.decay, (1 + step) / (10 + step))  # early weights are soon forgotten
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    self.state[key].lerp_(value, 1 - decay)
                else:
                    self.state[key].copy_(value)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    remove_abandoned(path.parent)
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content. Raises InputError for a file that is none; nothing in it can run code."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {}).get(KEY, "{}"))
                weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no mapping)
            step = metadata.get("step", 0)
            return {"average": with_current_names(weights), "shape": metadata.get("config"), "step": step}
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        parts: dict[str, Any] = {
            part: with_current_names(content[part]) for part in ("model", "average") if part in content
        }
        return {**with_current_names(content), **parts}
    except Exception as error:  # torch and safetensors each have many kinds
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint: {words}") from error


def warm_start(model: nn.Module, path: Path) -> str:
    """Take over every weight that has the name and the shape of one of `model`'s.

    A stem's head is taken from the stem of the same name, wherever that stands in the old model.

    Args:
        model: Its weights are replaced in place.
        path: A checkpoint (its averaged weights), a .safetensors file, or a plain dictionary of weights.

    Returns:
        What was taken, what was skipped, and where each head comes from.

    Raises:
        InputError: Nothing fits.
    """
    stored = read(path)
    weights: dict[str, Tensor] = stored.get("average") or stored.get("model") or stored
    own, begun, grown = model.state_dict(), dict[str, Tensor](), ""
    origins: dict[str, str | None] | None = None
    if isinstance(model, TfswaUNet):
        if shape := stored.get("shape"):
            old = ModelConfig.from_json(shape)
            origins = head_origins(old.stems, model.config.stems)
            weights = renamed_heads(weights, old.stems, list(origins.values()))
            weights = rebanded(weights, old, model.config)  # first: half the masks may be half a band's, too
            weights = rephased(weights, old, model.config)
            weights = kept_attentions(weights, old, model.config)
            weights, begun = deepened(weights, old, model)
        weights = real_parts(weights, model)
        if shape and is_wider(old, model.config):
            weights, grown = widened(weights, old, model.config, own), ", widened"
    fitting = {
        key: value
        for key, value in weights.items()
        if isinstance(value, Tensor) and key in own and own[key].shape == value.shape
    }
    if not fitting:
        raise InputError(f"{path}: no weight has the name and shape of one of this model's")
    model.load_state_dict(fitting | begun, strict=False)
    said = f"warm start from {path}: {len(fitting)} of {len(own)} tensors{grown}"
    for title, keys in (("of another shape or not there", own), ("not in this model", weights)):
        if skipped := sorted(set(keys) - set(fitting)):
            few = ", ".join(skipped[:4]) + (", ..." if len(skipped) > 4 else "")
            said += f"; {len(skipped)} {title} ({few})"
    if isinstance(model, TfswaUNet):
        said += f"; {_said_of_heads(model.config.stems, origins, fitting)}"
    return said


def head_origins(old: Sequence[str], new: Sequence[str]) -> dict[str, str | None]:
    """For each stem of `new`, the stem of `old` whose head it starts from.

    That is the stem of its own name. A sum ("drums+bass"; "accompaniment") that is none of `old` starts from
    the first of its parts, since heads that were trained apart have no common hidden features of which a mean
    would make sense. None: there is no such head, it starts afresh.
    """
    by_parts = {frozenset(stem.split("+")): stem for stem in old}
    found: dict[str, str | None] = {}
    for stem in new:
        parts = stem.split("+")
        same = by_parts.get(frozenset(parts))
        if stem == ACCOMPANIMENT:
            parts = [part for part in old if part != VOCALS]
        found[stem] = same or next((part for part in parts if part in old), None)
    return found


def renamed_heads(
    weights: dict[str, Any], old: Sequence[str], origins: Sequence[str | None]
) -> dict[str, Any]:
    """Weights whose heads are numbered by the new model's stems; heads that none starts from are left out.

    origins: for each new head, the stem among `old` that it starts from, or None.
    """
    found = {key: value for key, value in weights.items() if not key.startswith("heads.")}
    for place, origin in enumerate(origins):
        if origin is None:
            continue
        prefix = f"heads.{old.index(origin)}."
        found |= {
            f"heads.{place}.{key.removeprefix(prefix)}": value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
    return found


def _said_of_heads(
    stems: Sequence[str], origins: dict[str, str | None] | None, fitting: Collection[str]
) -> str:
    """Which heads were taken by name, which from another stem, and which start afresh."""
    if origins is None:
        return "heads by position, since the file does not name its stems"
    taken, derived, fresh = list[str](), list[str](), list[str]()
    for place, (stem, origin) in enumerate(origins.items()):
        if origin is None or not any(key.startswith(f"heads.{place}.") for key in fitting):
            fresh.append(stem)
        elif set(origin.split("+")) == set(stem.split("+")):
            taken.append(stem)
        else:
            derived.append(f"{stem} (from {origin})")
    kinds = (("by name", taken), ("from a part", derived), ("afresh", fresh))
    return "heads " + "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds if names)


def differences(first: ModelConfig, second: ModelConfig) -> list[str]:
    """The fields in which two networks differ, as their weights see it: not how much is computed at once."""
    names = {field.name for field in dataclasses.fields(ModelConfig)} - {"segment_samples", "margin_samples"}
    return sorted(name for name in names if getattr(first, name) != getattr(second, name))


def real_parts(weights: dict[str, Any], model: TfswaUNet) -> dict[str, Any]:
    """Weights whose heads of complex masks (c * 2 * p, ...) became those of real ones (c * p, ...).

    They stay as they are where `model` has heads of their shape, or where there is another difference. Signed
    masks are the real parts. Those called "real" are a softmax: twice the real part of a mask m is about
    log(m) - log(what m = 0 stands for).
    """
    own, c = model.state_dict(), model.config.channels
    factor = 2 if model.config.masks == "real" else 1
    found = dict(weights)
    for key, value in weights.items():
        match, wanted = _BANDED.fullmatch(key), own.get(key)
        if match is None or match[1] == "split" or wanted is None:
            continue
        rows = 2 * c * model.config.bands[int(match[2])].stride  # of masks; those of filters follow
        if 2 * (len(value) - len(wanted)) == rows and value.shape[1:] == wanted.shape[1:]:
            real = factor * value[:rows].view(c, 2, -1, *value.shape[1:])[:, 0].flatten(0, 1)
            found[key] = torch.cat([real, value[rows:]])
    return found


def rebanded(weights: dict[str, Any], old: ModelConfig, new: ModelConfig) -> dict[str, Any]:
    """The weights of a model `old` whose stem and heads fit the bands of `new`, as nearly as they can.

    A new band learns from the old one in which its first bin lies. Its input layer sums over a token's bins what the
    old one did, so that it answers to an even spectrum alike; its heads give a bin the mask of its place in
    the token. What mixes all rows (TDF) is left out where these are of other bins. They stay as they are
    where the bands are alike or stacked, and are left out where strides do not divide: they could have the
    shape of others.
    """
    if old.bands == new.bands or "stack" in (old.split, new.split):
        return weights
    starts, begins = old.token_starts, new.token_starts
    found = {
        key: value
        for key, value in weights.items()
        if key != "split.frequency"
        and not _BANDED.fullmatch(key)
        and not (starts != begins and ".tdf." in key)
    }
    begun = [band.start for band in old.bands]
    origins = [bisect_right(begun, band.start) - 1 for band in new.bands]
    strides = [
        (old.bands[origin].stride, band.stride) for origin, band in zip(origins, new.bands, strict=True)
    ]
    if old.n_fft != new.n_fft or any(max(pair) % min(pair) for pair in strides):
        return found
    for key, value in weights.items():
        if not (match := _BANDED.fullmatch(key)):
            continue
        before, band, kind = match.groups()
        for place, (origin, (was, now)) in enumerate(zip(origins, strides, strict=True)):
            if origin != int(band):
                continue
            part = value
            if before == "split" and kind == "weight":  # (d, features, bins of a token, 3)
                part = _resized(value, dim=2, sizes=(was, now)) * (was / now)
            elif before != "split":  # (parts * bins of a token, ...)
                part = _resized(value.view(-1, was, *value.shape[1:]), dim=1, sizes=(was, now))
                taps = (old.bands[origin].taps, new.bands[place].taps)
                filters = _respanned(part[old.mask_parts :], channels=old.channels, taps=taps)
                part = torch.cat([part[: old.mask_parts], filters]).flatten(0, 1)
            found[f"{before}.convs.{place}.{kind}"] = part
    centres = [band.start + (i + 0.5) * band.stride for band in new.bands for i in range(band.tokens)]
    nearest = torch.searchsorted(torch.tensor(starts), torch.tensor(centres), right=True) - 1
    found["split.frequency"] = weights["split.frequency"][:, :, nearest]
    return found


def rephased(weights: dict[str, Any], old: ModelConfig, new: ModelConfig) -> dict[str, Any]:
    """The weights of a model `old`, of which the bands see phases as in `new`.

    Where these are seen in another form, or were not seen, they are not heeded at first. Stacked bands are
    left as they are.
    """
    found, count = dict(weights), new.magnitudes
    for place, band in enumerate(new.bands):
        key, features = f"split.convs.{place}.weight", new.feature_count(band)
        value = weights.get(key)  # (d, features, bins of a token, 3), the magnitudes last
        if value is None or old.magnitudes != count:
            continue
        if (old.features, value.shape[1]) == (new.features, features):
            continue
        found[key] = value.new_zeros(len(value), features, *value.shape[2:])
        found[key][:, -count:] = value[:, -count:]
    return found


def _resized(value: Tensor, *, dim: int, sizes: tuple[int, int]) -> Tensor:
    """An axis of one size at another: the mean of neighbours, or each of them several times."""
    was, now = sizes
    if now < was:
        groups = value.view(*value.shape[:dim], now, was // now, *value.shape[dim + 1 :])
        return groups.mean(dim=dim + 1)
    return value.repeat_interleave(now // was, dim=dim)


def _respanned(filters: Tensor, *, channels: int, taps: tuple[int, int]) -> Tensor:
    """Filters (c * taps * 2, ...) over other frames: the middle ones stay, new ones begin as nothing."""
    was, now = taps
    old = filters.view(channels, was, 2, *filters.shape[1:])
    found = old.new_zeros(channels, now, *old.shape[2:])
    shared = min(taps)
    first = ((was - shared) // 2, (now - shared) // 2)
    found[:, first[1] : first[1] + shared] = old[:, first[0] : first[0] + shared]
    return found.flatten(0, 2)


def kept_attentions(weights: dict[str, Any], old: ModelConfig, new: ModelConfig) -> dict[str, Any]:
    """The weights of a model `old` by the names that they have in `new`, whose blocks lack some attentions.

    Attentions are numbered in a block: without this, one would get the weights of another. Of the fusion's
    last layer the rows of those that are left stay. Serial blocks are left as they are.
    """
    if old.branches == new.branches or "serial" in (old.fusion, new.fusion):
        return weights
    places = {i: new.branches.index(name) for i, name in enumerate(old.branches) if name in new.branches}
    found = {}
    for key, value in weights.items():
        block, marked, rest = key.partition(".attentions.")
        if marked:
            number, _, rest = rest.partition(".")
            if int(number) not in places:
                continue
            key = f"{block}{marked}{places[int(number)]}.{rest}"
        elif ".fusion.weigh.2." in key and len(value) == len(old.branches):
            value = value[list(places)]
        found[key] = value
    return found


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
