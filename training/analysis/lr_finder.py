"""Find a learning rate: `python -m training.analysis.lr_finder`, with the arguments of training.train.

Raises the learning rate step by step until the loss diverges, and suggests the one at which the smoothed loss falls
fastest (Smith, arXiv:1506.01186, section 3.3). Nothing is saved.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from itertools import pairwise

from omegaconf import DictConfig, OmegaConf

from training.configuration import run_command
from training.run import Run

LOWEST, HIGHEST = 1e-6, 1.0
STEPS = 100
NOISY = 25  # first steps to ignore: their rates are too low for learning
SMOOTHING = 0.9
DIVERGENCE = 4.0  # rise above the lowest loss, relative to the fall from the first losses to it


def find(config: DictConfig) -> float:
    """Print the sweep and return the suggested rate."""
    config = OmegaConf.merge(  # type: ignore[assignment]
        config, {"training": {"steps": STEPS, "warmup_steps": 0, "schedule": "cosine", "resume": False}}
    )
    with tempfile.TemporaryDirectory() as folder:
        config.out = folder
        run = Run(config)
        run.wrapped.train()
        rates, losses = list[float](), list[float]()
        for batch in run.batches():
            rate = LOWEST * (HIGHEST / LOWEST) ** (run.done / (STEPS - 1))
            config.training.learning_rate = config.training.final_learning_rate = rate
            rates.append(rate)
            losses.append(run.step(batch)["loss"])
            if run.fabric.is_global_zero:
                print(f"learning rate {rate:.2e}  loss {losses[-1]:.5f}", flush=True)
            if has_diverged(losses):
                break
    best = suggest(rates, losses)
    print(f"try training.learning_rate={best:.1e}")
    return best


def smooth(losses: list[float]) -> list[float]:
    """Compute a bias-corrected exponential moving average."""
    average, smoothed = 0.0, []
    for i, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**i))
    return smoothed


def has_diverged(losses: list[float]) -> bool:
    """Return whether the smoothed loss has risen far above its lowest point."""
    smoothed = smooth(losses)
    if not math.isfinite(smoothed[-1]):
        return True
    if len(losses) <= NOISY:
        return False
    low, early = min(smoothed), losses[:NOISY]
    fall = max(statistics.mean(early) - low, statistics.stdev(early))
    return smoothed[-1] - low > DIVERGENCE * fall


def suggest(rates: list[float], losses: list[float]) -> float:
    """Return the rate at which the smoothed loss falls fastest per log rate, before its lowest point.

    Raises:
        ValueError: The loss never falls after the first steps.
    """
    smoothed = [loss for loss in smooth(losses) if math.isfinite(loss)][NOISY:]
    lowest = smoothed.index(min(smoothed)) if smoothed else 0
    falls = [before - after for before, after in pairwise(smoothed[: lowest + 1])]
    if not falls:
        raise ValueError("the loss never decreased: check the data and the loss weights")
    return rates[NOISY + falls.index(max(falls))]


if __name__ == "__main__":
    sys.exit(run_command(find, about=__doc__))
