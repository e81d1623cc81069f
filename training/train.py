"""Train a model: `python -m training.train data=musdb18hq data.root=FOLDER [key=value ...]`.

Configs lie in training/configs (Hydra); `--config` prints what a command line gives. `out/last.ckpt` is
written whole or not at all, and a run that finds one goes on from its exact step. Several GPUs: CLUSTER.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from training.configuration import run_command
from training.logger import Journal
from training.run import Run


def train(config: DictConfig) -> Path:
    """Train to `training.steps`, or until `training.patience` validations brought nothing better.

    Returns the last checkpoint. Raises TfswaError or ValueError for data or settings that do not do.
    """
    run, settings = Run(config), config.training
    leads = run.fabric.is_global_zero
    validation = run.validation() if leads else None
    run.wrapped.train()
    with Journal(
        run.out, done=run.done, total=settings.steps, every=settings.log_every, leads=leads
    ) as journal:
        for line in filter(None, (run.said, run.rounded)):
            journal.say(line)
        for batch in run.batches():
            numbers = run.step(batch)
            journal.step(run.done, numbers, seconds=run.spent)
            finished, scores, better = run.done == settings.steps, dict[str, float](), False
            if finished or run.done % settings.validate_every == 0:
                network = run.averaged()
                if validation:
                    scores = validation.score(network)
                    journal.scores(run.done, scores)
                    journal.examples(run.done, validation, network)
                scores = run.fabric.broadcast(scores)
                better = bool(scores) and run.judge(scores)
            stop = bool(settings.patience) and run.stale >= settings.patience
            if scores or finished or run.done % settings.save_every == 0:
                journal.flush()
                run.save(scores, best=better)
            if stop:
                journal.say(f"step {run.done}: nothing better in {run.stale} validations")
                break
    return run.out / "last.ckpt"


if __name__ == "__main__":
    sys.exit(run_command(train, about=__doc__))
