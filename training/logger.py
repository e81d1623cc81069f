"""The log of a training run: a progress bar or lines on stdout, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from tfswa_sep.audio.atomic_file import write_text
from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.errors import UsageError
from tfswa_sep.model.stft_torch import stft
from training.progress import progress_bar
from training.validate import Validation

EXAMPLES = 2  # songs whose stems are logged
EXAMPLE_SECONDS = 60  # at most
DYNAMIC_RANGE = 80.0  # dB, of spectrogram images


class RunLogger(ExitStack):
    """A context that logs to TensorBoard, and to a bar on stderr or, without a terminal, lines on stdout.

    Args:
        out: The run's folder; TensorBoard files go to its subfolder `tensorboard`.
        done: Steps done before this start. Later TensorBoard events are purged.
        total: Steps of the whole run.
        every: Steps between log entries.
        enabled: Whether to log at all: only one process of a run does.
        wandb_project: Weights & Biases project to log to as well.
        config: The settings, for Weights & Biases.

    Raises:
        UsageError: `wandb_project` is given, but wandb is not installed.
    """

    def __init__(
        self,
        out: Path,
        *,
        done: int,
        total: int,
        every: int,
        enabled: bool,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.every, self.enabled, self.has_bar = every, enabled, enabled and sys.stderr.isatty()
        self._wandb = start_wandb(out, wandb_project, config or {}) if enabled and wandb_project else None
        if self._wandb:
            self.callback(self._wandb.finish)
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1) if enabled else None
        if self._writer:
            self.callback(self._writer.close)
        self._advance = self.enter_context(
            progress_bar("training", total=total, done=done, shown=self.has_bar)
        )

    def log_step(self, step: int, metrics: Mapping[str, float], *, seconds: float) -> None:
        """Log the loss and other metrics of a training step."""
        if not self.enabled:
            return
        self._advance(f"loss {metrics['loss']:.4f}")
        if step % self.every == 0:
            self._log_scalars(step, {f"train/{name}": value for name, value in metrics.items()})
            if not self.has_bar:
                print(f"step {step} loss {metrics['loss']:.5f} {seconds:.0f} s", flush=True)

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Log the result of `Validation.score`."""
        if not self.enabled:
            return
        self._log_scalars(step, {f"valid/{name}": value for name, value in scores.items()})
        intervals = [
            f"{name} {scores[name]:.2f} ({scores[name + ' low']:.2f} to {scores[name + ' high']:.2f})"
            for name in scores
            if f"{name} low" in scores
        ]
        self.print(f"step {step} SDR: {', '.join(intervals)}")
        for suffix, label in ((" median", "median of frames"), (" kept", "kept"), (" leaked", "leaked")):
            values = " ".join(
                f"{name.removesuffix(suffix)} {value:.2f}"
                for name, value in scores.items()
                if name.endswith(suffix)
            )
            self.print(f"step {step} {label}: {values}")

    def _log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log({**values, "step": step})

    def log_examples(self, step: int, validation: Validation, network: nn.Module) -> None:
        """Log the estimated stems of the first songs as audio, and as spectrograms beside the true ones."""
        if not self._writer:
            return
        media: dict[str, Any] = {}
        for song in validation.songs[:EXAMPLES]:
            estimates = validation.separate(network, song).cpu()
            _, truths = validation.excerpt(song)
            for name, estimate, truth in zip(validation.targets, estimates, truths, strict=True):
                estimate, truth = (wave[:, : EXAMPLE_SECONDS * SAMPLE_RATE] for wave in (estimate, truth))
                mono = estimate.mean(dim=0).clamp(-1, 1)
                image = torch.cat([spectrogram(estimate), spectrogram(truth)], dim=1)
                audio_tag, image_tag = f"{song}/{name}", f"{song}/{name}, estimate and truth"
                self._writer.add_audio(audio_tag, mono[None], step, sample_rate=SAMPLE_RATE)
                self._writer.add_image(image_tag, image[None], step)
                if self._wandb:
                    import wandb

                    media[audio_tag] = wandb.Audio(mono.numpy(), sample_rate=SAMPLE_RATE)
                    media[image_tag] = wandb.Image(image.numpy() * 255)
        if self._wandb:
            self._wandb.log({**media, "step": step})

    def print(self, line: str) -> None:
        """Print a line."""
        if self.enabled:
            print(line, flush=True)

    def flush(self) -> None:
        """Write everything to disk. Call this before saving a checkpoint, which must not be ahead of the log."""
        if self._writer:
            self._writer.flush()


def start_wandb(out: Path, project: str, config: Mapping[str, Any]) -> Any:
    """Start or resume the Weights & Biases run whose ID is in `out/wandb_id`.

    Raises:
        UsageError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UsageError("training.wandb needs wandb: pip install wandb, or remove training.wandb") from error
    id_file = out / "wandb_id"
    if not id_file.exists():
        write_text(id_file, uuid4().hex[:8])
    run = wandb.init(
        project=project, name=out.name, id=id_file.read_text(), resume="allow", dir=out, config=dict(config)
    )
    # A resumed run may repeat steps, which wandb would drop if they were its own step numbers.
    run.define_metric("*", step_metric="step")
    return run


def spectrogram(wave: Tensor) -> Tensor:
    """Compute an image (f, t) of samples (c, n): levels in dB scaled to 0 to 1, low frequencies at the bottom."""
    spectrum = stft(wave[None])[0]
    level = 10 * torch.log10(spectrum.square().sum(dim=0) + 1e-10)
    return ((level - level.max()) / DYNAMIC_RANGE + 1).clamp(0, 1).flip(0)
