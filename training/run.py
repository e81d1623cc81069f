"""A training run: what a checkpoint holds, and one step of it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from tfswa_sep.constants import HOP, N_FFT
from tfswa_sep.errors import UsageError
from tfswa_sep.model.blocks import FrequencyLinear
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.stft_torch import stft
from tfswa_sep.model.unet import TfswaUNet
from training import checkpoint, losses
from training.checkpoint import Average
from training.configuration import model_shape
from training.data.augment import Augmentation, lowpass
from training.data.loader import (
    Batch,
    TrainingData,
    load_batches,
    open_data,
    seconds_of,
    whole_seconds,
)
from training.distributed import cut_like, gather, launch, settle, synchronise_norms
from training.optimizer import make_optimizer, restore
from training.pretrain import MaskedSpectrogram
from training.schedule import learning_rate, phases
from training.validate import Validation


def start_processes(config: DictConfig) -> Fabric:
    """Find the other processes of a run, if it has any, and set what each of them needs set once."""
    settings = config.training
    if settings.threads:
        torch.set_num_threads(settings.threads)
    fabric = launch(settings)
    settle(fabric.device, fused_attention=settings.fused_attention)
    fabric.seed_everything(config.seed, verbose=False)
    return fabric


def open_songs(config: DictConfig, fabric: Fabric) -> tuple[TrainingData, ModelConfig]:
    """The songs to learn from, and the shape of the network for their targets.

    Raises UsageError for a transform that the losses do not have.
    """
    preset = model_shape(config.model)
    if (preset.n_fft, preset.hop) != (N_FFT, HOP):  # losses and validation transform with these, too
        raise UsageError(
            f"n_fft {preset.n_fft} and hop {preset.hop} cannot be trained, only {N_FFT} and {HOP}:"
            " leave model.changes.n_fft and model.changes.hop out"
        )
    with fabric.rank_zero_first():  # one process decodes the songs, the others find them
        device = "cpu" if config.training.workers else fabric.device
        data = open_data(config.data, preset.stems, seed=config.seed, device=device)
    consistent = preset.mixture_consistent and data.adds_up
    return data, dataclasses.replace(preset, stems=data.targets, mixture_consistent=consistent)


def build_network(shape: ModelConfig, config: DictConfig) -> TfswaUNet:
    """A network with fresh weights, laid out and compiled as the configuration says."""
    model = TfswaUNet(shape, checkpointing=config.model.checkpointing)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.training.compile_masks:  # a minute once; their many small steps then cost a third (measured)
        model.mask = torch.compile(model.mask)  # type: ignore[method-assign]
        losses.spectral_terms = torch.compile(losses.spectral_terms)
        for module in model.modules():
            if isinstance(module, FrequencyLinear):
                module.compile()
    return model


def find_checkpoint(config: DictConfig, shape: ModelConfig) -> dict[str, Any] | None:
    """The checkpoint that a run goes on from, if there is one and it shall.

    Raises UsageError where it is of another model, or was trained for something else.
    """
    path = Path(config.out) / "last.ckpt"
    if not (config.training.resume and path.exists()):
        return None
    stored = checkpoint.read(path)
    different = checkpoint.differences(ModelConfig.from_json(stored["shape"]), shape)
    trained = json.loads(stored["config"])["training"].get("objective", "separate")
    if trained != config.training.objective:
        different.append("training.objective")
    if different:
        raise UsageError(
            f"{path} is of a run with another {', '.join(different)}: choose another out=..., or"
            " training.resume=false to begin anew in its place"
        )
    return stored


def warm_up(model: TfswaUNet, config: DictConfig, *, resumed: bool) -> str:
    """Load what fits of `continue_from` or `warm_start`, unless the run is resumed; returns what to report."""
    name = "continue_from" if config.training.continue_from else "warm_start"
    path = config.training[name]
    if not path:
        return ""
    if resumed:
        return f"continues from {Path(config.out) / 'last.ckpt'}; training.{name}={path} is not read"
    return checkpoint.warm_start(model, Path(path))


def first_step(config: DictConfig) -> int:
    """The step at which a run without a checkpoint begins: 0, or that of `training.continue_from`."""
    path = config.training.continue_from
    return int(checkpoint.read(Path(path))["step"]) if path else 0


class Run:
    """Model, optimizer and data of a configuration, at the step where the last checkpoint left them.

    fabric: that of `start_processes`, where it was called before.
    Raises UsageError where that checkpoint is of another model or objective, and for a transform (n_fft, hop)
    that the losses do not have.
    """

    def __init__(self, config: DictConfig, *, fabric: Fabric | None = None) -> None:
        settings = self.settings = config.training
        if settings.objective not in ("separate", "masked"):
            raise UsageError(f"unknown training.objective {settings.objective!r}: choose separate or masked")
        self.config, self.out, self.masked = config, Path(config.out), settings.objective == "masked"
        self.fabric = fabric or start_processes(config)
        self.data, self.shape = open_songs(config, self.fabric)
        self.matrix = self.data.matrix.to(self.fabric.device)
        self.augment = Augmentation(config.data.get("augment"))
        self.model = build_network(self.shape, config)
        stored = find_checkpoint(config, self.shape)
        self.said = warm_up(self.model, config, resumed=stored is not None)  # for a person
        trained: nn.Module = MaskedSpectrogram(self.model) if self.masked else self.model
        self.wrapped = self.fabric.setup_module(synchronise_norms(trained, self.fabric))
        self.trained = self.wrapped.module
        self.optimizer: Any = self.fabric.setup_optimizers(make_optimizer(self.trained, settings))
        self.average = Average(self.model, settings.ema_decay)
        self.done, self.seconds = first_step(config), 0.0  # steps; spent before this process
        self.best, self.stale = -math.inf, 0  # best score; validations since
        self.out.mkdir(parents=True, exist_ok=True)
        if stored:
            self._restore(stored)
        self.begun = time.monotonic()

    def _restore(self, stored: dict[str, Any]) -> None:
        for own, part in ((self.trained.state_dict(), "model"), (self.average.state, "average")):
            stored[part] = {key: cut_like(value, own[key]) for key, value in stored[part].items()}
        self.trained.load_state_dict(stored["model"])
        self.average.state = stored["average"]
        restore(self.optimizer.optimizer, stored["optimizer"])
        self.fabric.strategy.precision.load_state_dict(stored["precision"])
        self.done, self.seconds = stored["step"], stored["seconds"]
        if stored.get("judged_on") == self.judged_on:  # scores of other songs cannot be compared
            self.best, self.stale = stored["best"], stored["stale"]

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or patience ended before them."""
        patience = self.settings.patience
        return self.done >= self.settings.steps or bool(patience and self.stale >= patience)

    @property
    def spent(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.monotonic() - self.begun

    @property
    def rounded(self) -> str:
        """What is to be said of an example's length that the network would have to pad, else nothing."""
        wanted = seconds_of(self.config.data)
        found = whole_seconds(wanted, self.shape)
        if found == wanted:
            return ""
        multiple = self.shape.frame_multiple
        return f"examples are {found:.4f} s in place of {wanted:g}: whole multiples of {multiple} frames"

    def batches(self) -> Iterator[Batch]:
        """This process's share of the batches of the steps that are left, on the device."""
        share, device = self.settings.batch_size * self.settings.accumulate, self.fabric.device
        for phase in phases(self.settings, start=self.done, seconds=seconds_of(self.config.data)):
            for mixture, stems, known in load_batches(
                self.data.draw(whole_seconds(phase.seconds, self.shape)),
                phase.steps,
                count=share,
                first=self.fabric.global_rank * share,
                workers=self.settings.workers,
            ):
                batch = mixture.to(device), stems.to(device), known.to(device)
                yield lowpass(batch, phase.highest) if phase.highest else batch

    def step(self, batch: Batch) -> dict[str, float]:
        """Train on one batch. Returns the loss, its terms, and the gradient's norm before clipping.

        The batch is taken in `accumulate` parts; the loss is the mean of theirs.
        """
        settings, totals = self.settings, dict[str, Tensor]()
        rate = learning_rate(self.done, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.trained.zero_grad(set_to_none=True)
        parts = list(zip(*(torch.split(tensor, settings.batch_size) for tensor in batch), strict=True))
        for i, part in enumerate(parts):
            with self.fabric.no_backward_sync(self.wrapped, enabled=i + 1 < len(parts)):
                loss, terms = self._loss(part, generator=self._generator(i))
                self.fabric.backward(loss / len(parts))
            for name, value in {"loss": loss, **terms}.items():
                totals[name] = totals.get(name, 0) + value.detach() / len(parts)
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
        )
        assert norm is not None  # max_norm was given
        means: Any = self.fabric.all_reduce(totals, reduce_op="mean")
        numbers = {name: float(value) for name, value in {**means, "gradient_norm": gather(norm)}.items()}
        # fp16's scaler must see infinite gradients too: it skips the step itself, and scales less.
        if math.isfinite(numbers["gradient_norm"]) or getattr(self.fabric.strategy.precision, "scaler", None):
            self.optimizer.step()
        self.average.update(self.model, self.done)
        self.done += 1
        return {**numbers, "learning_rate": rate}

    def _generator(self, part: int) -> torch.Generator:
        """Randomness for a part of this step's batch: by seed, step, process and part alone."""
        process = self.fabric.global_rank * self.settings.accumulate + part
        words = (self.config.seed * 1_000_003 + self.done) * 1_009 + process
        return torch.Generator().manual_seed(words)

    def _loss(self, batch: Batch, *, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        mixture, stems, known = self.augment(batch, generator=generator)
        transformed = stft(mixture)
        if self.masked:
            loss: Tensor = self.wrapped(transformed, generator)
            return loss, {}
        targets = torch.einsum("ks,bscn->bkcn", self.matrix, stems)
        # A sum is known where all that is in it is.
        known = 1 - ((1 - known) @ self.matrix.T).clamp(max=1)
        spectrum = self.wrapped(transformed)
        return losses.weigh_terms(
            spectrum, mixture, targets, known, weights=self.settings.loss, transformed=transformed
        )

    def averaged(self) -> TfswaUNet:
        """A network of the averaged weights, for scores. All processes have to call it."""
        network = TfswaUNet(self.shape).to(self.fabric.device)
        network.load_state_dict(gather(self.average.state))
        return network.eval()

    def validation(self) -> Validation | None:
        """The excerpts that are scored, if the configuration names songs for it."""
        if self.masked or not self.data.valid:
            return None
        return Validation(
            self.data.valid,
            targets=self.data.targets,
            matrix=self.data.matrix,
            seconds=self.config.data.valid_seconds,
        )

    @property
    def judged_on(self) -> str:
        """What `best` is a score of."""
        seconds = self.config.data.get("valid_seconds")
        return f"mean SDR, excerpts of {seconds} s of {', '.join(sorted(self.data.valid))}"

    def judge(self, scores: dict[str, float]) -> bool:
        """Whether these scores are the best so far; counts the validations that were not."""
        better = scores.get("mean", -math.inf) > self.best
        self.best = scores["mean"] if better else self.best
        self.stale = 0 if better else self.stale + 1
        return better

    def save(self, scores: dict[str, float], *, best: bool) -> None:
        """Write last.ckpt, and best.ckpt too if it is the `best`. All processes have to call it."""
        state = {
            "model": gather(self.trained.state_dict()),
            "average": gather(self.average.state),
            "optimizer": gather(self.optimizer.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.done,
            "seconds": self.spent,
            "best": self.best,
            "judged_on": self.judged_on,
            "stale": self.stale,
            "scores": scores,
            "shape": self.shape.to_json(),
            "config": json.dumps(OmegaConf.to_container(self.config, resolve=True)),
        }
        if not self.fabric.is_global_zero:
            return
        checkpoint.save(self.out / "last.ckpt", state)
        if best:
            checkpoint.save(self.out / "best.ckpt", {k: v for k, v in state.items() if k != "optimizer"})
