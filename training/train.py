"""Train a model: `python -m training.train data=musdb18hq data.root=FOLDER [key=value ...]`.

The configs are in training/configs (Hydra); `--config` prints the configuration and exits. Checkpoints are
written to `out/last.ckpt` atomically, and a run that finds one resumes from that exact step. On SIGTERM or
SIGUSR1 the run finishes its step, saves, and exits with code 75; the same command resumes it. `out/config.yaml`
holds the settings, `out/run.json` the commit, versions and command of every start. For several GPUs see
docs/multi-gpu.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from training.configuration import run_command
from training.logger import RunLogger
from training.run import Run, start_processes
from training.run_folder import lock_folder, record_start
from training.stop import Stopped, StopSignals


def train(config: DictConfig) -> Path:
    """Train for `training.steps`, or until `training.patience` validations in a row bring no improvement.

    Args:
        config: A configuration as `training.configuration.load_config` returns it.

    Returns:
        The path of the last checkpoint.

    Raises:
        TfswaError: The data or settings are unusable.
        ValueError: Likewise.
        Stopped: A signal ended the run early.
    """
    out, fabric = Path(config.out), start_processes(config)
    last = out / "last.ckpt"
    with lock_folder(out, fabric):
        run = Run(config, fabric=fabric)
        if run.finished:
            if fabric.is_global_zero:
                print(
                    f"{out} is already finished at step {run.done}; raise training.steps to continue from {last}"
                )
            return last
        record_start(out, config, step=run.done, fabric=fabric)
        with StopSignals() as signals:
            _train(run, signals)
    return last


def _train(run: Run, signals: StopSignals) -> None:
    settings, is_main = run.settings, run.fabric.is_global_zero
    validation = run.validation() if is_main else None
    run.wrapped.train()
    with RunLogger(
        run.out,
        done=run.done,
        total=settings.steps,
        every=settings.log_every,
        enabled=is_main,
        wandb_project=settings.wandb,
        config=run.config_values,
    ) as logger:
        for note in run.notes:
            logger.print(note)
        for batch in run.batches():
            metrics = run.step(batch)
            logger.log_step(run.done, metrics, seconds=run.seconds)
            is_last, scores, better = run.done == settings.steps, dict[str, float](), False
            stopping = signals.any_received(run.fabric) and not is_last
            if is_last or (run.done % settings.validate_every == 0 and not stopping):
                model = run.averaged_model()
                if validation:
                    scores = validation.score(model)
                    logger.log_scores(run.done, scores)
                    logger.log_examples(run.done, validation, model)
                scores = run.fabric.broadcast(scores)
                better = bool(scores) and run.judge(scores)
            due = any(every and run.done % every == 0 for every in (settings.save_every, settings.keep_every))
            if scores or is_last or stopping or due:
                logger.flush()
                run.save(scores, best=better)
            if stopping:
                logger.print(
                    f"step {run.done}: stopped by a signal and saved; run the same command to resume"
                )
                raise Stopped
            if run.finished and not is_last:
                logger.print(f"step {run.done}: stopping early, no improvement in {run.stale} validations")
                break


if __name__ == "__main__":
    sys.exit(run_command(train, about=__doc__))
