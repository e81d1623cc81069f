"""Checkpoints: reading and writing, and warm starts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
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
from training.surgery import is_wider, widen

_NOT_IN_WEIGHTS = {"segment_samples", "margin_samples"}  # they only decide how much is computed at once


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    remove_abandoned(path.parent)
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def rank(
    ranking: Sequence[tuple[float, int]], score: float, step: int, *, count: int
) -> list[tuple[float, int]]:
    """Insert a score into the `count` best (score, step), best first; of equal ones the earlier step wins."""
    others = [entry for entry in ranking if entry[1] != step]
    return sorted([*others, (score, step)], key=lambda entry: (-entry[0], entry[1]))[:count]


def save_all(
    out: Path, state: dict[str, Any], *, best: bool, dropped: Collection[int], settings: Any
) -> None:
    """Write the checkpoints of a step, and delete those that are no longer to be kept.

    Args:
        out: The run's folder.
        state: What to save. Its "ranking" holds the (score, step) of the best checkpoints.
        best: Whether this is the best so far, for best.ckpt.
        dropped: Steps that are no longer among the best.
        settings: `training`: keep_best, keep_every and keep_last.
    """
    step = state["step"]
    weights = {key: value for key, value in state.items() if key != "optimizer"}
    # last.ckpt comes last: a run killed before resumes from an earlier step, and writes all of these again.
    if best:
        save(out / "best.ckpt", weights)
    if settings.keep_best > 1 and step in [entry[1] for entry in state["ranking"]]:
        save(out / f"best-{step:06d}.ckpt", weights)
    for old in dropped:
        (out / f"best-{old:06d}.ckpt").unlink(missing_ok=True)
    if settings.keep_every and step % settings.keep_every == 0:
        save(out / f"step-{step:06d}.ckpt", state)
        if settings.keep_last:
            steps = (int(path.stem.removeprefix("step-")) for path in out.glob("step-*.ckpt"))
            for old in sorted(number for number in steps if number <= step)[: -settings.keep_last]:
                (out / f"step-{old:06d}.ckpt").unlink()
    save(out / "last.ckpt", state)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint or a .safetensors file, safely: no code in it is run.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {}).get(KEY, "{}"))
                weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (no mapping)
            return {
                "average": with_current_names(weights),
                "shape": metadata.get("config"),
                "step": metadata.get("step", 0),
            }
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except Exception as error:  # torch and safetensors raise many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error


def warm_start(model: nn.Module, path: Path) -> str:
    """Load every weight that has the same name and shape in `model`. Heads are matched by stem name.

    Args:
        model: Its weights are replaced in place. If it is wider than the stored model, that is widened first.
        path: A checkpoint (its averaged weights are used), a .safetensors file, or a saved state dict.

    Returns:
        A log line: what was loaded and skipped, and where each head comes from.

    Raises:
        InputError: No weight matches.
    """
    stored = read(path)
    weights: dict[str, Tensor] = stored.get("average") or stored.get("model") or stored
    own, widened = model.state_dict(), ""
    origins: dict[str, str | None] | None = None
    if isinstance(model, TfswaUNet) and (shape := stored.get("shape")):
        old, new = ModelConfig.from_json(shape), model.config
        origins = match_heads(old.stems, new.stems)
        weights = renumber_heads(weights, old.stems, list(origins.values()))
        weights = drop_misplaced(weights, old, new)
        if is_wider(old, new):
            weights, widened = widen(weights, old, new, own), ", widened"
    matching = {
        key: value
        for key, value in weights.items()
        if isinstance(value, Tensor) and key in own and own[key].shape == value.shape
    }
    if not matching:
        raise InputError(f"{path}: no weight has the name and shape of one of this model's")
    model.load_state_dict(matching, strict=False)
    notes = [f"warm start from {path}: {len(matching)} of {len(own)} tensors{widened}"]
    for title, keys in (("missing or of another shape", own), ("not in this model", weights)):
        if skipped := sorted(set(keys) - set(matching)):
            names = ", ".join(skipped[:4]) + (", ..." if len(skipped) > 4 else "")
            notes.append(f"{len(skipped)} {title} ({names})")
    if isinstance(model, TfswaUNet):
        notes.append(_describe_heads(origins, matching))
    return "; ".join(notes)


def drop_misplaced(weights: Mapping[str, Any], old: ModelConfig, new: ModelConfig) -> dict[str, Any]:
    """Drop weights whose name stands for another band or kind of attention in the new model."""
    patterns = list[str]()
    if (old.bands, old.features) != (new.bands, new.features):
        patterns.append(r"split\.convs\.")
    if old.bands != new.bands:
        patterns.append(r"heads\.\d+\.convs\.")
    if old.token_starts != new.token_starts:
        patterns += [r"split\.frequency$", r".*\.tdf\."]
    if old.branches != new.branches:
        patterns += [r".*\.attentions\.", r".*\.fusion\.weigh\."]
    return {key: value for key, value in weights.items() if not any(re.match(p, key) for p in patterns)}


def match_heads(old: Sequence[str], new: Sequence[str]) -> dict[str, str | None]:
    """For each new stem, choose the old stem whose head it starts from, or None.

    A sum ("drums+bass", "accompaniment") that the old model lacks starts from the first of its parts: heads were
    trained independently, so that the mean of several would make no sense.
    """
    by_parts = {frozenset(stem.split("+")): stem for stem in old}
    origins: dict[str, str | None] = {}
    for stem in new:
        parts = stem.split("+")
        same = by_parts.get(frozenset(parts))
        if stem == ACCOMPANIMENT:
            parts = [part for part in old if part != VOCALS]
        origins[stem] = same or next((part for part in parts if part in old), None)
    return origins


def renumber_heads(
    weights: Mapping[str, Any], old: Sequence[str], origins: Sequence[str | None]
) -> dict[str, Any]:
    """Replace the heads of the `old` stems by copies of the heads of `origins`, in that order."""
    renumbered = {key: value for key, value in weights.items() if not key.startswith("heads.")}
    for i, origin in enumerate(origins):
        if origin is not None:
            prefix = f"heads.{old.index(origin)}."
            renumbered |= {
                f"heads.{i}.{key.removeprefix(prefix)}": value
                for key, value in weights.items()
                if key.startswith(prefix)
            }
    return renumbered


def _describe_heads(origins: Mapping[str, str | None] | None, matching: Collection[str]) -> str:
    if origins is None:
        return "heads by position, since the file does not name its stems"
    by_name, from_part, random = list[str](), list[str](), list[str]()
    for i, (stem, origin) in enumerate(origins.items()):
        if origin is None or not any(key.startswith(f"heads.{i}.") for key in matching):
            random.append(stem)
        elif set(origin.split("+")) == set(stem.split("+")):
            by_name.append(stem)
        else:
            from_part.append(f"{stem} (from {origin})")
    kinds = (("by name", by_name), ("from a part", from_part), ("random", random))
    return "heads " + "; ".join(f"{kind}: {', '.join(stems)}" for kind, stems in kinds if stems)


def differing_fields(first: ModelConfig, second: ModelConfig) -> list[str]:
    """Return the names of the fields in which two models differ, segment length and margin aside."""
    names = {field.name for field in dataclasses.fields(ModelConfig)} - _NOT_IN_WEIGHTS
    return sorted(name for name in names if getattr(first, name) != getattr(second, name))
