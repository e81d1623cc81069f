"""What changes with the step: the learning rate, and the examples of a progressive run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tfswa_sep.errors import UsageError


def learning_rate(step: int, settings: Any) -> float:
    """Return the learning rate of a step: linear warm-up, then `settings.schedule`.

    "cosine" falls to `final_learning_rate` at `steps`; "step" multiplies by `decay` every `decay_every` steps.
    """
    if step < settings.warmup_steps:
        return float(settings.learning_rate * (step + 1) / settings.warmup_steps)
    if settings.schedule == "step":
        return float(settings.learning_rate * settings.decay ** (step // settings.decay_every))
    if settings.schedule != "cosine":
        raise UsageError(f"unknown training.schedule {settings.schedule!r}: choose cosine or step")
    progress = min((step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1), 1.0)
    low = settings.final_learning_rate
    return float(low + (settings.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a progressive run."""

    steps: range
    seconds: float  # per example
    highest: float | None  # Hz; higher frequencies are removed from mixtures and stems


def phases(settings: Any, *, start: int, seconds: float) -> Iterator[Phase]:
    """Yield the phases from step `start` on: those of `settings.progressive`, then the rest at full length.

    Raises:
        UsageError: The phases are not in order, or have unknown keys.
    """
    begin = 0
    for row in settings.progressive or []:
        until = int(row["until"])
        if until <= begin:
            raise UsageError(f"training.progressive: until={until} does not come after {begin}")
        if unknown := sorted(set(row) - {"until", "seconds", "highest"}):
            raise UsageError(f"training.progressive: unknown key {unknown[0]!r}")
        until = min(until, settings.steps)
        if until > start:
            yield Phase(
                steps=range(max(begin, start), until),
                seconds=float(row.get("seconds") or seconds),
                highest=row.get("highest"),
            )
        begin = until
    if max(begin, start) < settings.steps:
        yield Phase(steps=range(max(begin, start), settings.steps), seconds=seconds, highest=None)
