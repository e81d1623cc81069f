"""A training run: its data, model and optimizer, the training step, and checkpoints."""

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
from tfswa_sep.inference.overlap_add import plan_segments
from tfswa_sep.model.blocks import FrequencyLinear
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.stft_torch import stft
from tfswa_sep.model.unet import TfswaUNet
from training import checkpoint, losses
from training.configuration import build_model_config
from training.data.augment import Augmentation, lowpass
from training.data.loader import Batch, TrainingData, load_batches, open_data, seconds_of, whole_seconds
from training.distributed import gather, launch, set_up_process, shard_like, synchronise_norms
from training.optimizer import WeightAverage, load_optimizer_state, make_optimizer
from training.pretrain import MaskedSpectrogram
from training.schedule import learning_rate, phases
from training.validate import Validation


def start_processes(config: DictConfig) -> Fabric:
    """Connect the processes of a run, and apply the per-process settings (threads, attention kernels, seed)."""
    settings = config.training
    if settings.threads:
        torch.set_num_threads(settings.threads)
    fabric = launch(settings)
    set_up_process(fabric.device, fused_attention=settings.fused_attention)
    fabric.seed_everything(config.seed, verbose=False)
    return fabric


def load_data(config: DictConfig, fabric: Fabric) -> tuple[TrainingData, ModelConfig]:
    """Open the training data, and return it with the model config for its targets.

    Raises:
        UsageError: The model's n_fft or hop is not the one that the losses use.
    """
    preset = build_model_config(config.model)
    if (preset.n_fft, preset.hop) != (N_FFT, HOP):
        raise UsageError(
            f"training supports only n_fft {N_FFT} and hop {HOP}, not {preset.n_fft} and {preset.hop}:"
            " remove model.changes.n_fft and model.changes.hop"
        )
    with fabric.rank_zero_first():  # one process decodes the songs, the others use its cache
        device = "cpu" if config.training.workers else fabric.device
        data = open_data(config.data, preset.stems, seed=config.seed, device=device)
    consistent = preset.mixture_consistent and data.adds_up
    return data, dataclasses.replace(preset, stems=data.targets, mixture_consistent=consistent)


def build_model(model_config: ModelConfig, config: DictConfig) -> TfswaUNet:
    """Build a model with initial weights, in channels-last format and partly compiled if `config` says so."""
    model = TfswaUNet(model_config, checkpointing=config.model.checkpointing)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.training.compile_masks:  # takes a minute; the masks then take a third of the time (measured)
        model.mask = torch.compile(model.mask)  # type: ignore[method-assign]
        losses.spectral_terms = torch.compile(losses.spectral_terms)
        for module in model.modules():
            if isinstance(module, FrequencyLinear):
                module.compile()
    return model


def find_checkpoint(config: DictConfig, model_config: ModelConfig) -> dict[str, Any] | None:
    """Return the checkpoint to resume from, or None if there is none or `training.resume` is off.

    Raises:
        UsageError: It belongs to a different model, training objective or optimizer.
    """
    path = Path(config.out) / "last.ckpt"
    if not (config.training.resume and path.exists()):
        return None
    stored = checkpoint.read(path)
    different = checkpoint.differing_fields(ModelConfig.from_json(stored["shape"]), model_config)
    before = json.loads(stored["config"])["training"]
    different += [
        f"training.{name}" for name in ("objective", "optimizer") if before[name] != config.training[name]
    ]
    if different:
        raise UsageError(
            f"{path} is from a run with different {', '.join(different)}: choose another out=..., or add"
            " training.resume=false to start over and overwrite it"
        )
    return stored


def load_initial_weights(model: TfswaUNet, config: DictConfig) -> tuple[int, str]:
    """Load the matching weights of `continue_from` or `warm_start`, if either is set.

    Returns:
        The step to start at, and a message for the log.
    """
    if path := config.training.continue_from:
        return int(checkpoint.read(Path(path))["step"]), checkpoint.warm_start(model, Path(path))
    path = config.training.warm_start
    return 0, checkpoint.warm_start(model, Path(path)) if path else ""


class Run:
    """The data, model and optimizer of a run, restored from its last checkpoint if there is one.

    Args:
        config: The configuration.
        fabric: The result of `start_processes`, if it has been called already.

    Raises:
        UsageError: The checkpoint belongs to a different model, objective or optimizer, or the losses do not
            support the model's n_fft and hop.
    """

    def __init__(self, config: DictConfig, *, fabric: Fabric | None = None) -> None:
        self.config, self.settings, self.out = config, config.training, Path(config.out)
        if self.settings.objective not in ("separate", "masked"):
            raise UsageError(
                f"unknown training.objective {self.settings.objective!r}: choose separate or masked"
            )
        self.masked = self.settings.objective == "masked"
        self.fabric = fabric or start_processes(config)
        self.done, self.previous_seconds = 0, 0.0  # steps; training time of earlier starts
        self.best, self.stale = -math.inf, 0  # best score; validations since
        self.ranking: list[tuple[float, int]] = []  # the best scores and their steps, best first
        self.dropped: set[int] = set()  # steps that were among them before
        self._set_up_data()
        stored = find_checkpoint(config, self.model_config)
        self._set_up_model(resumed=stored is not None)
        self.out.mkdir(parents=True, exist_ok=True)
        if stored:
            self._resume(stored)
        self.started = time.monotonic()

    def _set_up_data(self) -> None:
        self.data, self.model_config = load_data(self.config, self.fabric)
        self.matrix = self.data.matrix.to(self.fabric.device)
        self.augment = Augmentation(self.config.data.get("augment"))

    def _set_up_model(self, *, resumed: bool) -> None:
        self.model = build_model(self.model_config, self.config)
        self.weights_note = self.batch_note = ""  # for the log
        if not resumed:
            self.done, self.weights_note = load_initial_weights(self.model, self.config)
        elif name := next((n for n in ("continue_from", "warm_start") if self.settings[n]), None):
            self.weights_note = (
                f"resuming from {self.out / 'last.ckpt'}; ignoring training.{name}={self.settings[name]}"
            )
        trained: nn.Module = MaskedSpectrogram(self.model) if self.masked else self.model
        self.wrapped = self.fabric.setup_module(synchronise_norms(trained, self.fabric))
        self.trained = self.wrapped.module
        self.optimizer: Any = self.fabric.setup_optimizers(make_optimizer(self.trained, self.settings))
        self.average = WeightAverage(self.model, self.settings.ema_decay)

    def _resume(self, stored: dict[str, Any]) -> None:
        for own, part in ((self.trained.state_dict(), "model"), (self.average.state, "average")):
            stored[part] = {key: shard_like(value, own[key]) for key, value in stored[part].items()}
        self.trained.load_state_dict(stored["model"])
        self.average.state = stored["average"]
        load_optimizer_state(self.optimizer.optimizer, stored["optimizer"])
        if stored["precision"]:  # the scale of 16-mixed, which other precisions neither have nor need
            self.fabric.strategy.precision.load_state_dict(stored["precision"])
        self.done, self.previous_seconds = stored["step"], stored["seconds"]
        before = stored.get("batch", self.batch)
        if before != self.batch:
            self.batch_note = (
                f"examples per step: {self.batch} instead of {before}; the learning rate stays the same"
            )
        if stored["judged_on"] == self.judged_on:  # scores on other songs are not comparable
            self.best, self.stale = stored["best"], stored["stale"]
            self.ranking = [tuple(entry) for entry in stored.get("ranking", [])]

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or patience has run out."""
        patience = self.settings.patience
        return self.done >= self.settings.steps or bool(patience and self.stale >= patience)

    @property
    def seconds(self) -> float:
        """Training time in seconds, including earlier starts."""
        return self.previous_seconds + time.monotonic() - self.started

    @property
    def batch(self) -> int:
        """Examples per step, over all processes."""
        return int(self.settings.batch_size * self.settings.accumulate * self.fabric.world_size)

    @property
    def notes(self) -> list[str]:
        """Lines for the log: what is trained on what, and what may surprise."""
        size = sum(weight.numel() for weight in self.model.parameters())
        valid = f"{len(self.data.valid)} for validation" if self.data.valid else "no validation"
        lines = [
            f"{self.config.model.preset}, {size / 1e6:.1f} million parameters; {self.data.about}, {valid}",
            f"{self.fabric.world_size} x {self.fabric.device.type}, {self.fabric.strategy.precision.precision},"
            f" {self.batch} examples per step; from step {self.done} to {self.settings.steps}",
        ]
        return lines + [note for note in (self.weights_note, self.batch_note, self.length_note) if note]

    @property
    def length_note(self) -> str:
        """A line for the log if the length of an example was rounded so that the model need not pad it."""
        requested = seconds_of(self.config.data)
        rounded = whole_seconds(requested, self.model_config)
        if rounded == requested:
            return ""
        multiple = self.model_config.frame_multiple
        return (
            f"examples are {rounded:.4f} s long instead of {requested:g} s: a multiple of {multiple} frames"
        )

    def batches(self) -> Iterator[Batch]:
        """Yield this process's share of each remaining batch, on its device."""
        share, device = self.settings.batch_size * self.settings.accumulate, self.fabric.device
        for phase in phases(self.settings, start=self.done, seconds=seconds_of(self.config.data)):
            for mixture, stems, known in load_batches(
                self.data.draw(whole_seconds(phase.seconds, self.model_config)),
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
        metrics = {name: float(value) for name, value in {**means, "gradient_norm": gather(norm)}.items()}
        # The fp16 scaler must see infinite gradients: it skips the step itself and lowers its scale.
        if math.isfinite(metrics["gradient_norm"]) or getattr(self.fabric.strategy.precision, "scaler", None):
            self.optimizer.step()
        self.average.update(self.model, self.done)
        self.done += 1
        return {**metrics, "learning_rate": rate}

    def _generator(self, part: int) -> torch.Generator:
        """Return a generator for one part of the batch, seeded by seed, step, process and part only."""
        process = self.fabric.global_rank * self.settings.accumulate + part
        return torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.done) * 1_009 + process)

    def _loss(self, batch: Batch, *, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        mixture, stems, known = self.augment(batch, generator=generator)
        mixture_spectrum = stft(mixture)
        if self.masked:
            loss: Tensor = self.wrapped(mixture_spectrum, generator)
            return loss, {}
        targets = torch.einsum("ks,bscn->bkcn", self.matrix, stems)
        # A sum is known if all of its stems are.
        known = 1 - ((1 - known) @ self.matrix.T).clamp(max=1)
        return losses.weighted_loss(
            self.wrapped(mixture_spectrum),
            mixture,
            targets,
            known,
            weights=self.settings.loss,
            mixture_spectrum=mixture_spectrum,
        )

    def averaged_model(self) -> TfswaUNet:
        """Return a model with the averaged weights, for validation. Every process must call this."""
        model = TfswaUNet(self.model_config).to(self.fabric.device)
        model.load_state_dict(gather(self.average.state))
        return model.eval()

    @property
    def config_values(self) -> dict[str, Any]:
        """The configuration as plain values."""
        values: Any = OmegaConf.to_container(self.config, resolve=True)
        return dict(values)

    def validation(self) -> Validation | None:
        """Return the validation excerpts, or None if the configuration names no validation songs."""
        if self.masked or not self.data.valid:
            return None
        return Validation(
            self.data.valid,
            targets=self.data.targets,
            matrix=self.data.matrix,
            seconds=self.config.data.valid_seconds,
            plan=plan_segments(
                segment=self.model_config.segment_samples, margin=self.model_config.margin_samples
            ),
        )

    @property
    def judged_on(self) -> str:
        """What `best` was measured on."""
        seconds = self.config.data.get("valid_seconds")
        length = "whole songs" if seconds is None else f"excerpts of {seconds} s of"
        return f"mean SDR, {length} {', '.join(sorted(self.data.valid))}"

    def judge(self, scores: dict[str, float]) -> bool:
        """Return whether these scores are the best so far, and count validations without improvement."""
        score = scores.get("mean", -math.inf)
        better = score > self.best
        ranking = checkpoint.rank(self.ranking, score, self.done, count=self.settings.keep_best)
        self.dropped = {step for _, step in self.ranking} - {step for _, step in ranking}
        self.ranking = ranking
        self.best = scores["mean"] if better else self.best
        self.stale = 0 if better else self.stale + 1
        return better

    def save(self, scores: dict[str, float], *, best: bool) -> None:
        """Write last.ckpt and, if they are due, the checkpoints to keep. Every process must call this."""
        state = {
            "model": gather(self.trained.state_dict()),
            "average": gather(self.average.state),
            "optimizer": gather(self.optimizer.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.done,
            "seconds": self.seconds,
            "batch": self.batch,
            "best": self.best,
            "ranking": self.ranking,
            "judged_on": self.judged_on,
            "stale": self.stale,
            "scores": scores,
            "shape": self.model_config.to_json(),
            "config": json.dumps(self.config_values),
        }
        if self.fabric.is_global_zero:
            checkpoint.save_all(self.out, state, best=best, dropped=self.dropped, settings=self.settings)
            self.dropped = set()
