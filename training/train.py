"""Train a model: `python -m training.train data.pools=FOLDER [data.valid=FOLDER] [model=small] [key=value ...]`.

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
from typing import Any

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
from training.validate import Validation


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
        decay = min(self.decay, (1 + step) / (10 + step))  # early weights are soon forgotten
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    self.state[key].lerp_(value, 1 - decay)
                else:
                    self.state[key].copy_(value)


def pick_precision(wanted: str) -> str:
    """`auto` -> bf16 where the hardware multiplies it, else float32 (emulated bf16 is many times slower)."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16-mixed"
    return "bf16-mixed" if torch.cpu._is_amx_tile_supported() else "32-true"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], weights: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and its terms by name."""
    mixture, stems, known = batch
    spectrum = model(stft(mixture))
    estimate = istft(spectrum, length=mixture.shape[-1])
    terms = {
        "waveform": losses.waveform_l1(estimate, stems, known),
        "stft": losses.multi_resolution_stft_l1(
            estimate, stems, known, n_ffts=list(weights.n_ffts), spectrum=spectrum
        ),
    }
    total = weights.waveform * terms["waveform"] + weights.stft * terms["stft"]
    return total, terms


def batches(config: DictConfig, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of the steps from `start` on."""
    mixer = Mixer(Path(config.data.pools), MixSettings(**OmegaConf.to_container(config.data.mix)), seed=config.seed)  # type: ignore[arg-type]
    loader = DataLoader(
        MixDataset(mixer, batch_size=config.training.batch_size),
        batch_size=None,
        sampler=range(start, config.training.steps),
        num_workers=config.training.workers,
        prefetch_factor=3 if config.training.workers else None,
    )
    yield from loader


def train(config: DictConfig) -> Path:
    """Train to `training.steps`, and return the last checkpoint's path."""
    settings = config.training
    if settings.threads:
        torch.set_num_threads(settings.threads)
    precision = pick_precision(settings.precision)
    fabric = Fabric(accelerator=settings.accelerator, devices=1, precision=precision)
    fabric.launch()
    fabric.seed_everything(config.seed, verbose=False)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    shape = PRESETS[config.model.preset]
    model = TfswaUNet(shape, checkpointing=config.model.checkpointing).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(model, settings.ema_decay)
    step, seconds = 0, 0.0
    last = out / "last.ckpt"
    stored: dict[str, Any] | None = None
    if settings.resume and last.exists():
        stored = torch.load(last, map_location="cpu", weights_only=True)
    elif settings.warm_start:
        first = torch.load(settings.warm_start, map_location="cpu", weights_only=True)
        model.load_state_dict(first["average"])
        average.state = first["average"]
    if settings.compile_masks:  # a minute once; the masks' many small steps then cost a third (measured)
        model.apply_masks = torch.compile(model.apply_masks)  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    if stored is not None:
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        average.state, step, seconds = stored["average"], stored["step"], stored["seconds"]
    wrapped, optimizer = fabric.setup(model, optimizer)
    validation = Validation(Path(config.data.valid), seconds=config.data.valid_seconds) if config.data.valid else None
    log = SummaryWriter(str(out / "tensorboard"), purge_step=step)
    best = stored["best"] if stored is not None else -math.inf
    begun = time.monotonic()
    wrapped.train()
    for batch in batches(config, step):
        batch = tuple(part.to(fabric.device) for part in batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        loss, terms = compute_loss(wrapped, batch, settings.loss)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        norm = fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
        if math.isfinite(float(norm)):
            optimizer.step()
        average.update(model, step)
        step += 1
        if step % 10 == 0:
            spent = time.monotonic() - begun
            for name, value in {"loss": loss, **terms, "gradient_norm": norm}.items():
                log.add_scalar(f"train/{name}", float(value.detach()), step)
            print(f"step {step} loss {float(loss):.5f} norm {float(norm):.2f} {seconds + spent:.0f} s", flush=True)
        finished = step == settings.steps
        scores: dict[str, float] = {}
        if validation and (step % settings.validate_every == 0 or finished):
            averaged = TfswaUNet(shape).to(fabric.device)
            averaged.load_state_dict(average.state)
            scores = validation.score(averaged.eval())
            for name, score in scores.items():
                log.add_scalar(f"valid/{name}", score, step)
            print(f"step {step} valid {json.dumps({k: round(v, 2) for k, v in scores.items()})}", flush=True)
        if step % settings.save_every == 0 or finished or scores:
            better = bool(scores) and scores["mean"] > best
            best = scores["mean"] if better else best
            state = {
                "model": model.state_dict(),
                "average": average.state,
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": seconds + time.monotonic() - begun,
                "best": best,
                "scores": scores,
                "shape": shape.to_json(),
                "config": json.dumps(OmegaConf.to_container(config)),
            }
            save(last, state)
            if better:
                save(out / "best.ckpt", {key: value for key, value in state.items() if key != "optimizer"})
    log.close()
    return last


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    train(config)


if __name__ == "__main__":
    main()
