"""Checkpoints: written whole or not at all, averaged weights, and warm starts from whatever fits."""

from __future__ import annotations

import dataclasses
import json
import re
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
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.unet import TfswaUNet, with_current_names
from training.surgery import deepened, is_wider, widened


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
    if isinstance(model, TfswaUNet) and (shape := stored.get("shape")):
        old = ModelConfig.from_json(shape)
        origins = head_origins(old.stems, model.config.stems)
        weights = renamed_heads(weights, old.stems, list(origins.values()))
        weights = without_moved(weights, old, model.config)
        weights, begun = deepened(weights, old, model)
        if is_wider(old, model.config):
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


def without_moved(weights: dict[str, Any], old: ModelConfig, new: ModelConfig) -> dict[str, Any]:
    """The weights without those whose place stands for another band or attention in `new`."""
    changed = list[str]()
    if (old.bands, old.features) != (new.bands, new.features):
        changed.append(r"split\.convs\.")
    if old.bands != new.bands:
        changed.append(r"heads\.\d+\.convs\.")
    if old.token_starts != new.token_starts:
        changed += [r"split\.frequency$", r".*\.tdf\."]
    if old.branches != new.branches:
        changed += [r".*\.attentions\.", r".*\.fusion\.weigh\."]
    return {key: value for key, value in weights.items() if not any(re.match(part, key) for part in changed)}


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
