"""What a run says while it trains: a progress bar or lines, and TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from tfswa_sep.model.stft_torch import stft
from training.progress import progress_bar
from training.validate import SAMPLE_RATE, Validation

EXAMPLES = 2  # songs whose stems go to TensorBoard
DYNAMIC_RANGE = 80.0  # dB of a spectrogram's picture


class Journal:
    """A context: TensorBoard under `out`, and a bar on stderr or, where that is no terminal, lines on stdout.

    leads: whether this is the process that speaks; the others of a run are silent.
    """

    def __init__(self, out: Path, *, done: int, total: int, every: int, leads: bool) -> None:
        self.every, self.leads, self.shown = every, leads, leads and sys.stderr.isatty()
        self._stack = ExitStack()
        # Events after the checkpoint that a run goes on from are those of steps that are done again.
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1) if leads else None
        self._advance = self._stack.enter_context(
            progress_bar("training", total=total, done=done, shown=self.shown)
        )

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._writer:
            self._writer.close()

    def step(self, done: int, numbers: Mapping[str, float], *, seconds: float) -> None:
        """One step's loss, its terms and the like."""
        if not self._writer:
            return
        self._advance(f"loss {numbers['loss']:.4f}")
        if done % self.every == 0:
            for name, value in numbers.items():
                self._writer.add_scalar(f"train/{name}", value, done)
            if not self.shown:
                print(f"step {done} loss {numbers['loss']:.5f} {seconds:.0f} s", flush=True)

    def scores(self, done: int, scores: Mapping[str, float]) -> None:
        """Scores of a validation; see `Validation.score`."""
        if self._writer:
            for name, value in scores.items():
                self._writer.add_scalar(f"valid/{name}", value, done)
            shown = [
                f"{name} {scores[name]:.2f} ({scores[name + ' low']:.2f} to {scores[name + ' high']:.2f})"
                for name in scores
                if f"{name} low" in scores
            ]
            self.say(f"step {done} SDR: {', '.join(shown)}")
            for end, label in ((" median", "median of frames"), (" kept", "kept"), (" leaked", "leaked")):
                found = {name.removesuffix(end): x for name, x in scores.items() if name.endswith(end)}
                self.say(f"step {done} {label}: {rounded(found)}")

    def examples(self, done: int, validation: Validation, network: nn.Module) -> None:
        """What the network makes of the first songs: to hear, and as spectrograms beside the truth."""
        if not self._writer:
            return
        for song in validation.songs[:EXAMPLES]:
            estimates = validation.separate(network, song).cpu()
            _, truths = validation.excerpt(song)
            for name, estimate, truth in zip(validation.targets, estimates, truths, strict=True):
                mono = estimate.mean(dim=0).clamp(-1, 1)[None]
                self._writer.add_audio(f"{song}/{name}", mono, done, sample_rate=SAMPLE_RATE)
                picture = torch.cat([spectrogram(estimate), spectrogram(truth)], dim=1)
                self._writer.add_image(f"{song}/{name}, estimate and truth", picture[None], done)

    def say(self, line: str) -> None:
        """A line for a person."""
        if self.leads:
            print(line, flush=True)

    def flush(self) -> None:
        """Bring everything to disk: a checkpoint must not know more than the record."""
        if self._writer:
            self._writer.flush()


def spectrogram(wave: Tensor) -> Tensor:
    """(c, n) -> (f, t), the level in dB from 0 (black) to 1; low frequencies are at the bottom."""
    parts = stft(wave[None])[0]
    level = 10 * torch.log10(parts.square().sum(dim=0) + 1e-10)
    return ((level - level.max()) / DYNAMIC_RANGE + 1).clamp(0, 1).flip(0)


def rounded(scores: Mapping[str, float]) -> str:
    """Scores as a person reads them."""
    return " ".join(f"{name} {value:.2f}" for name, value in scores.items())
