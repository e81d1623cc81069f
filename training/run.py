"""A training run: its state, its training step, and its checkpoints."""

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
    """Connect the processes of a run, and apply the per-process settings (threads, attention kernels, seed)."""
    settings = config.training
    if settings.threads:
        torch.set_num_threads(settings.threads)
    fabric = launch(settings)
    settle(fabric.device, fused_attention=settings.fused_attention)
    fabric.seed_everything(config.seed, verbose=False)
    return fabric


def open_songs(config: DictConfig, fabric: Fabric) -> tuple[TrainingData, ModelConfig]:
    """Open the training data, and return it with the model config for its targets.

    Raises:
        UsageError: The model's n_fft or hop is not the one that the losses use.
    """
    preset = model_shape(config.model)
    if (preset.n_fft, preset.hop) != (N_FFT, HOP):  # losses and validation use these, too
        raise UsageError(
            f"training supports only n_fft {N_FFT} and hop {HOP}, not {preset.n_fft} and {preset.hop}:"
            " remove model.changes.n_fft and model.changes.hop"
        )
    with fabric.rank_zero_first():  # one process decodes the songs, the others use its cache
        device = "cpu" if config.training.workers else fabric.device
        data = open_data(config.data, preset.stems, seed=config.seed, device=device)
    consistent = preset.mixture_consistent and data.adds_up
    return data, dataclasses.replace(preset, stems=data.targets, mixture_consistent=consistent)


def build_network(shape: ModelConfig, config: DictConfig) -> TfswaUNet:
    """Build a network with initial weights, in the memory format and with the compilation that `config` asks for."""
    model = TfswaUNet(shape, checkpointing=config.model.checkpointing)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.training.compile_masks:  # takes a minute; the masks then cost a third (measured)
        model.mask = torch.compile(model.mask)  # type: ignore[method-assign]
        losses.spectral_terms = torch.compile(losses.spectral_terms)
        for module in model.modules():
            if isinstance(module, FrequencyLinear):
                module.compile()
    return model


def find_checkpoint(config: DictConfig, shape: ModelConfig) -> dict[str, Any] | None:
    """Return the checkpoint to resume from, or None if there is none or `training.resume` is off.

    Raises:
        UsageError: It belongs to a different model or training objective.
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
            f"{path} is from a run with different {', '.join(different)}: choose another out=..., or add"
            " training.resume=false to start over and overwrite it"
        )
    return stored


def warm_up(model: TfswaUNet, config: DictConfig, *, resumed: bool) -> str:
    """Load the matching weights of `continue_from` or `warm_start` unless resuming; return a message for the log."""
    name = "continue_from" if config.training.continue_from else "warm_start"
    path = config.training[name]
    if not path:
        return ""
    if resumed:
        return f"resuming from {Path(config.out) / 'last.ckpt'}; ignoring training.{name}={path}"
    return checkpoint.warm_start(model, Path(path))


def first_step(config: DictConfig) -> int:
    """Return the step at which a new run starts: 0, or that of `training.continue_from`."""
    path = config.training.continue_from
    return int(checkpoint.read(Path(path))["step"]) if path else 0


class Run:
    """The model, optimizer and data of a run, restored from its last checkpoint if there is one.

    Args:
        config: The configuration.
        fabric: The result of `start_processes`, if it has been called already.

    Raises:
        UsageError: The checkpoint belongs to a different model or objective, or the losses do not support the
            model's n_fft and hop.
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
        self.said = warm_up(self.model, config, resumed=stored is not None)  # for the log
        trained: nn.Module = MaskedSpectrogram(self.model) if self.masked else self.model
        self.wrapped = self.fabric.setup_module(synchronise_norms(trained, self.fabric))
        self.trained = self.wrapped.module
        self.optimizer: Any = self.fabric.setup_optimizers(make_optimizer(self.trained, settings))
        self.average = Average(self.model, settings.ema_decay)
        self.done, self.seconds = first_step(config), 0.0  # steps done; seconds of earlier starts
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
        """Whether all steps are done, or patience has run out."""
        patience = self.settings.patience
        return self.done >= self.settings.steps or bool(patience and self.stale >= patience)

    @property
    def spent(self) -> float:
        """Training time in seconds, including earlier starts."""
        return self.seconds + time.monotonic() - self.begun

    @property
    def rounded(self) -> str:
        """A note if the length of an example was rounded so that the network need not pad it, else empty."""
        wanted = seconds_of(self.config.data)
        found = whole_seconds(wanted, self.shape)
        if found == wanted:
            return ""
        multiple = self.shape.frame_multiple
        return f"examples are {found:.4f} s long instead of {wanted:g} s: a multiple of {multiple} frames"

    def batches(self) -> Iterator[Batch]:
        """Yield this process's share of each remaining batch, on its device."""
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
        """Train on one batch, in `accumulate` parts.

        Returns:
            The loss and its terms (means over the parts), the gradient norm before clipping, and the learning rate.
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
        # The fp16 scaler must see infinite gradients: it skips the step itself, and lowers its scale.
        if math.isfinite(numbers["gradient_norm"]) or getattr(self.fabric.strategy.precision, "scaler", None):
            self.optimizer.step()
        self.average.update(self.model, self.done)
        self.done += 1
        return {**numbers, "learning_rate": rate}

    def _generator(self, part: int) -> torch.Generator:
        """Return a generator for one part of the batch, seeded by seed, step, process and part only."""
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
        # A sum is known if all of its stems are.
        known = 1 - ((1 - known) @ self.matrix.T).clamp(max=1)
        spectrum = self.wrapped(transformed)
        return losses.weigh_terms(
            spectrum, mixture, targets, known, weights=self.settings.loss, transformed=transformed
        )

    def averaged(self) -> TfswaUNet:
        """Return a network with the averaged weights, for validation. Every process must call this."""
        network = TfswaUNet(self.shape).to(self.fabric.device)
        network.load_state_dict(gather(self.average.state))
        return network.eval()

    def validation(self) -> Validation | None:
        """Return the validation excerpts, or None if the configuration names no validation songs."""
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
        """What `best` was measured on."""
        seconds = self.config.data.get("valid_seconds")
        return f"mean SDR, excerpts of {seconds} s of {', '.join(sorted(self.data.valid))}"

    def judge(self, scores: dict[str, float]) -> bool:
        """Return whether these scores are the best so far, and count validations without improvement."""
        better = scores.get("mean", -math.inf) > self.best
        self.best = scores["mean"] if better else self.best
        self.stale = 0 if better else self.stale + 1
        return better

    def save(self, scores: dict[str, float], *, best: bool) -> None:
        """Write last.ckpt, and also best.ckpt if `best`. Every process must call this."""
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
