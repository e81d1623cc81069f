"""Train a model: `python -m training.train data.pools=FOLDER [data.valid=FOLDER] [key=value ...]`.

Configs lie in training/configs (Hydra). `out/last.ckpt` is written whole or not at all, and a run that
finds one goes on from its exact step: batches depend on the seed and the step alone.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from tfswa_sep.model.config import PRESETS
from tfswa_sep.model.transform import istft, stft
from tfswa_sep.model.unet import TfswaUNet
from training import losses
from training.data.mix import MixDataset, Mixer, MixSettings
from training.optimizer import make_optimizers
from training.validate import Validation

Batch = tuple[Tensor, Tensor, Tensor]  # mixtures (b, c, n), stems (b, s, c, n), which are known (b, s)


def learning_rate(step: int, config: Any) -> float:
    """Linear warm-up, then a cosine down to `final_learning_rate` at `steps`."""
    if step < config.warmup_steps:
        return float(config.learning_rate * (step + 1) / config.warmup_steps)
    done = min((step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1), 1.0)
    low = config.final_learning_rate
    return float(low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * done)))


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


def pick_precision(wanted: str) -> Any:
    """`auto` -> bf16 where the hardware multiplies it, else float32 (emulated bf16 is many times slower)."""
    if wanted != "auto":
        return wanted
    fast = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def compute_loss(model: nn.Module, batch: Batch, weights: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and its terms by name. `weights.domain` says where they are taken: see losses.py."""
    mixture, stems, known = batch
    transformed = stft(mixture)
    spectrum = model(transformed)
    if weights.domain == "spectrum":
        with torch.no_grad():
            wanted = stft(stems.flatten(0, 1)).view(spectrum.shape)
        l1, sdr = losses.spectral_terms(spectrum, wanted, known, mixture=transformed)
        terms = {"stft": l1, "sdr": sdr}
    else:
        estimate = istft(spectrum, length=mixture.shape[-1])
        n_ffts = list(weights.n_ffts)
        terms = {
            "waveform": losses.waveform_l1(estimate, stems, known),
            "sdr": losses.negative_sdr(estimate, stems, known, mixture=mixture),
            "stft": losses.multi_resolution_stft_l1(estimate, stems, known, n_ffts=n_ffts, spectrum=spectrum),
        }
    return sum((weights[name] * term for name, term in terms.items()), torch.zeros(()).to(mixture)), terms


def batches(config: DictConfig, start: int) -> Iterator[Batch]:
    """Batches of the steps from `start` on."""
    settings = MixSettings(**cast(dict[str, Any], OmegaConf.to_container(config.data.mix)))
    mixer = Mixer(Path(config.data.pools), settings, seed=config.seed)
    workers = config.training.workers
    yield from DataLoader(
        MixDataset(mixer, batch_size=config.training.batch_size),
        batch_size=None,
        sampler=range(start, config.training.steps),
        num_workers=workers,
        prefetch_factor=3 if workers else None,
    )


class Run:
    """A training run: what a checkpoint holds, and one step of it."""

    def __init__(self, config: DictConfig) -> None:
        settings = config.training
        self.config, self.out = config, Path(config.out)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.fabric = Fabric(
            accelerator=settings.accelerator, devices=1, precision=pick_precision(settings.precision)
        )
        self.fabric.launch()
        self.fabric.seed_everything(config.seed, verbose=False)
        self.shape = PRESETS[config.model.preset]
        self.model = TfswaUNet(self.shape, checkpointing=config.model.checkpointing)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compile_masks:  # a minute once; their many small steps then cost a third (measured)
            self.model.apply_masks = torch.compile(self.model.apply_masks)  # type: ignore[method-assign]
            losses.spectral_terms = torch.compile(losses.spectral_terms)
        self.wrapped, *self.optimizers = self.fabric.setup(self.model, *make_optimizers(self.model, settings))
        self.average = Average(self.model, settings.ema_decay)
        self.done, self.seconds, self.best = 0, 0.0, -math.inf  # steps; spent before this process; best score
        self.out.mkdir(parents=True, exist_ok=True)
        last = self.out / "last.ckpt"
        if settings.resume and last.exists():
            self._restore(torch.load(last, map_location="cpu", weights_only=True))
        elif settings.warm_start:
            first = torch.load(settings.warm_start, map_location="cpu", weights_only=True)
            self.model.load_state_dict(first["average"])
            self.average = Average(self.model, settings.ema_decay)
        self.begun = time.monotonic()

    def _restore(self, stored: dict[str, Any]) -> None:
        self.model.load_state_dict(stored["model"])
        self.average.state = {k: v.to(self.fabric.device) for k, v in stored["average"].items()}
        for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.done, self.seconds, self.best = stored["step"], stored["seconds"], stored["best"]

    @property
    def spent(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.monotonic() - self.begun

    def step(self, batch: Batch) -> dict[str, float]:
        """Train on one batch. Returns the loss, its terms, and the gradient's norm before clipping."""
        settings = self.config.training
        mixture, stems, known = (part.to(self.fabric.device) for part in batch)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.done, settings)
        loss, terms = compute_loss(self.wrapped, (mixture, stems, known), settings.loss)
        self.model.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        values = {"loss": loss, **terms, "gradient_norm": norm}
        numbers = {name: float(value.detach()) for name, value in values.items()}
        if math.isfinite(numbers["gradient_norm"]):
            for optimizer in self.optimizers:
                optimizer.step()
        self.average.update(self.model, self.done)
        self.done += 1
        return numbers

    def score(self, validation: Validation) -> dict[str, float]:
        """Scores of the averaged weights."""
        averaged = TfswaUNet(self.shape).to(self.fabric.device)
        averaged.load_state_dict(self.average.state)
        return validation.score(averaged.eval())

    def save(self, scores: dict[str, float]) -> None:
        """Write last.ckpt, and best.ckpt if the scores are the best so far."""
        better = bool(scores) and scores["mean"] > self.best
        self.best = scores["mean"] if better else self.best
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.done,
            "seconds": self.spent,
            "best": self.best,
            "scores": scores,
            "shape": self.shape.to_json(),
            "config": json.dumps(OmegaConf.to_container(self.config)),
        }
        save(self.out / "last.ckpt", state)
        if better:
            save(self.out / "best.ckpt", {k: v for k, v in state.items() if k != "optimizers"})


def train(config: DictConfig) -> Path:
    """Train to `training.steps`. Returns the last checkpoint; raises ValueError if a pool is empty."""
    run, settings = Run(config), config.training
    data = config.data
    validation = Validation(Path(data.valid), seconds=data.valid_seconds) if data.valid else None
    run.wrapped.train()
    with SummaryWriter(str(run.out / "tensorboard"), purge_step=run.done) as log:
        for batch in batches(config, run.done):
            numbers = run.step(batch)
            if run.done % 10 == 0:
                for name, value in numbers.items():
                    log.add_scalar(f"train/{name}", value, run.done)
                print(f"step {run.done} loss {numbers['loss']:.5f} {run.spent:.0f} s", flush=True)
            finished = run.done == settings.steps
            scores: dict[str, float] = {}
            if validation and (finished or run.done % settings.validate_every == 0):
                scores = run.score(validation)
                for name, value in scores.items():
                    log.add_scalar(f"valid/{name}", value, run.done)
                print(f"step {run.done} dB above the mixture:", *_rounded(scores), flush=True)
            if scores or finished or run.done % settings.save_every == 0:
                run.save(scores)
    return run.out / "last.ckpt"


def _rounded(scores: dict[str, float]) -> list[str]:
    return [f"{name} {value:.2f}" for name, value in scores.items()]


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    """Train as the command line says."""
    train(config)


if __name__ == "__main__":
    main()
