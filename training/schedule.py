"""What changes with the step: the learning rate, and what a progressive run looks at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tfswa_sep.errors import UsageError


def learning_rate(step: int, settings: Any) -> float:
    """Linear warm-up, then what `settings.schedule` says.

    cosine: down to `final_learning_rate` at `steps`.  step: times `decay` every `decay_every` steps.
    """
    if step < settings.warmup_steps:
        return float(settings.learning_rate * (step + 1) / settings.warmup_steps)
    if settings.schedule == "step":
        return float(settings.learning_rate * settings.decay ** (step // settings.decay_every))
    if settings.schedule != "cosine":
        raise UsageError(f"unknown training.schedule {settings.schedule!r}: choose cosine or step")
    done = min((step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1), 1.0)
    low = settings.final_learning_rate
    return float(low + (settings.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a progressive run."""

    steps: range
    seconds: float  # of an example
    highest: float | None  # Hz; what lies above is taken out of mixtures and stems


def phases(settings: Any, *, start: int, seconds: float) -> Iterator[Phase]:
    """The phases from step `start` on: those of `settings.progressive`, then whole examples up to `steps`.

    Raises UsageError where they do not follow one another.
    """
    begun = 0
    for row in settings.progressive or []:
        until = int(row["until"])
        if until <= begun:
            raise UsageError(f"training.progressive: until={until} does not come after {begun}")
        if unknown := sorted(set(row) - {"until", "seconds", "highest"}):
            raise UsageError(f"training.progressive: unknown key {unknown[0]!r}")
        until = min(until, settings.steps)
        if until > start:
            yield Phase(
                steps=range(max(begun, start), until),
                seconds=float(row.get("seconds") or seconds),
                highest=row.get("highest"),
            )
        begun = until
    if max(begun, start) < settings.steps:
        yield Phase(steps=range(max(begun, start), settings.steps), seconds=seconds, highest=None)
