"""The log of a training run: a progress bar or lines on stdout, and TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from tfswa_sep.constants import SAMPLE_RATE
from tfswa_sep.model.stft_torch import stft
from training.progress import progress_bar
from training.validate import Validation

EXAMPLES = 2  # songs whose stems go to TensorBoard
DYNAMIC_RANGE = 80.0  # dB, of spectrogram images


class RunLogger(ExitStack):
    """A context that logs to TensorBoard, and to a bar on stderr or, without a terminal, lines on stdout.

    Args:
        out: The run's folder; TensorBoard files go to its subfolder `tensorboard`.
        done: Steps done before this start. Later TensorBoard events are purged.
        total: Steps of the whole run.
        every: Steps between log entries.
        enabled: Whether to log at all: only one process of a run does.
    """

    def __init__(self, out: Path, *, done: int, total: int, every: int, enabled: bool) -> None:
        super().__init__()
        self.every, self.enabled, self.has_bar = every, enabled, enabled and sys.stderr.isatty()
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1) if enabled else None
        if self._writer:
            self.callback(self._writer.close)
        self._advance = self.enter_context(
            progress_bar("training", total=total, done=done, shown=self.has_bar)
        )

    def log_step(self, step: int, metrics: Mapping[str, float], *, seconds: float) -> None:
        """Log the loss and other metrics of a training step."""
        if not self._writer:
            return
        self._advance(f"loss {metrics['loss']:.4f}")
        if step % self.every == 0:
            for name, value in metrics.items():
                self._writer.add_scalar(f"train/{name}", value, step)
            if not self.has_bar:
                print(f"step {step} loss {metrics['loss']:.5f} {seconds:.0f} s", flush=True)

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Log the result of `Validation.score`."""
        if not self._writer:
            return
        for name, value in scores.items():
            self._writer.add_scalar(f"valid/{name}", value, step)
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

    def log_examples(self, step: int, validation: Validation, network: nn.Module) -> None:
        """Log the estimated stems of the first songs as audio, and as spectrograms beside the true ones."""
        if not self._writer:
            return
        for song in validation.songs[:EXAMPLES]:
            estimates = validation.separate(network, song).cpu()
            _, truths = validation.excerpt(song)
            for name, estimate, truth in zip(validation.targets, estimates, truths, strict=True):
                mono = estimate.mean(dim=0).clamp(-1, 1)[None]
                self._writer.add_audio(f"{song}/{name}", mono, step, sample_rate=SAMPLE_RATE)
                image = torch.cat([spectrogram(estimate), spectrogram(truth)], dim=1)
                self._writer.add_image(f"{song}/{name}, estimate and truth", image[None], step)

    def print(self, line: str) -> None:
        """Print a line."""
        if self.enabled:
            print(line, flush=True)

    def flush(self) -> None:
        """Write everything to disk. Call this before saving a checkpoint, which must not be ahead of the log."""
        if self._writer:
            self._writer.flush()


def spectrogram(wave: Tensor) -> Tensor:
    """Compute an image (f, t) of samples (c, n): levels in dB scaled to 0 to 1, low frequencies at the bottom."""
    spectrum = stft(wave[None])[0]
    level = 10 * torch.log10(spectrum.square().sum(dim=0) + 1e-10)
    return ((level - level.max()) / DYNAMIC_RANGE + 1).clamp(0, 1).flip(0)
