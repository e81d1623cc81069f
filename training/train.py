"""Train a model: `python -m training.train data=musdb18hq data.root=FOLDER [key=value ...]`.

Configs lie in training/configs (Hydra); `--config` prints what a command line gives. `out/last.ckpt` is
written whole or not at all, and a run that finds one goes on from its exact step. After SIGTERM or SIGUSR1 it
finishes the step, saves, and ends with exit code 75: the same command goes on. `out/config.yaml` has the
settings, `out/run.json` commit, versions and command of every start. Several GPUs: CLUSTER.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from training.configuration import run_command
from training.logger import Journal
from training.run import Run, start_processes
from training.run_folder import held, record_start
from training.stop import Stopped, StopSignals


def train(config: DictConfig) -> Path:
    """Train to `training.steps`, or until `training.patience` validations brought nothing better.

    Returns the last checkpoint. Raises TfswaError or ValueError for data or settings that do not do, and
    Stopped when a signal ended the run early.
    """
    out, fabric = Path(config.out), start_processes(config)
    last = out / "last.ckpt"
    with held(out, fabric):
        run = Run(config, fabric=fabric)
        if run.finished:
            if fabric.is_global_zero:
                print(f"{out} is finished at step {run.done}: {last}; more training.steps=... go on from it")
            return last
        record_start(out, config, step=run.done, fabric=fabric)
        with StopSignals() as signals:
            _train(run, signals)
    return last


def _train(run: Run, signals: StopSignals) -> None:
    settings, leads = run.settings, run.fabric.is_global_zero
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
            last, scores, better = run.done == settings.steps, dict[str, float](), False
            stopped = signals.asked(run.fabric) and not last
            if last or (run.done % settings.validate_every == 0 and not stopped):
                network = run.averaged()
                if validation:
                    scores = validation.score(network)
                    journal.scores(run.done, scores)
                    journal.examples(run.done, validation, network)
                scores = run.fabric.broadcast(scores)
                better = bool(scores) and run.judge(scores)
            if scores or last or stopped or run.done % settings.save_every == 0:
                journal.flush()
                run.save(scores, best=better)
            if stopped:
                journal.say(f"step {run.done}: asked to stop, saved; the same command goes on from here")
                raise Stopped
            if run.finished and not last:
                journal.say(f"step {run.done}: nothing better in {run.stale} validations")
                break


if __name__ == "__main__":
    sys.exit(run_command(train, about=__doc__))
