"""Describe a model: `python -m training.analysis.describe [small|large|reference|paper] [--depth N] [--memory]`.

Prints the parameters, size and FLOPs of each module; with --memory also the peak memory of one training step on
six seconds of stereo audio, without and with gradient checkpointing, each in its own process.

A multiply-add counts as two FLOPs. Convolutions, matrix products and attention are counted, for one inference
segment; element-wise operations, norms and the STFT outside the network are not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tfswa_sep.model.config import PRESETS, ModelConfig
from tfswa_sep.model.stft_torch import separate_waveform
from tfswa_sep.model.unet import TfswaUNet
from training.losses import waveform_l1

SECONDS = 5.944  # of audio for --memory: 512 frames


@dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """The cost of one module, including its submodules."""

    name: str  # dotted path, "" for the whole network
    depth: int  # number of parts of the name
    parameters: int
    flops: float  # per second of audio

    @property
    def megabytes(self) -> float:
        """Size of the parameters in float32, in 10^6 bytes."""
        return self.parameters * 4 / 1e6


def describe(config: ModelConfig, *, depth: int = 1) -> list[ModuleCost]:
    """Return the costs of all modules down to `depth`, in network order; the whole network comes last.

    Uses fake tensors, which have shapes but no data.
    """
    with torch.device("meta"):
        network = TfswaUNet(config).eval()
    frames = config.segment_samples // config.hop + 1
    counter = FlopCounterMode(display=False)
    # The FLOPs of attention are counted only for plain matrix products, not for the CPU's fused kernel.
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        network.to_empty(device="cpu")(torch.empty(1, 2 * config.channels, config.n_fft // 2 + 1, frames))
    root = type(network).__name__
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    seconds = config.segment_samples / config.sample_rate

    def flops(module: nn.Module, name: str) -> int:
        if (path := f"{root}.{name}" if name else root) in counts:
            return counts[path]
        # Module lists are never called themselves.
        return sum(flops(child, f"{name}.{key}".lstrip(".")) for key, child in module.named_children())

    costs = []
    for name, module in network.named_modules():
        level = name.count(".") + 1 if name else 0
        parameters = sum(p.numel() for p in module.parameters())
        if level <= depth and (parameters or not name):
            cost = ModuleCost(
                name=name, depth=level, parameters=parameters, flops=flops(module, name) / seconds
            )
            costs.append(cost)
    return [*costs[1:], costs[0]]


def cost_table(title: str, costs: list[ModuleCost]) -> Table:
    """Make a table of the result of `describe`."""
    table = Table(title=title, caption="A multiply-add counts as two FLOPs.", show_footer=True)
    total = costs[-1]
    table.add_column("Module", "Total")
    for heading, footer in zip(
        ("Parameters", "MB (float32)", "GFLOP per second"), _cells(total), strict=True
    ):
        table.add_column(heading, footer, justify="right")
    for cost in costs[:-1]:
        name = cost.name.rpartition(".")[2]
        table.add_row("  " * (cost.depth - 1) + name, *_cells(cost), style="dim" if cost.depth > 1 else None)
    return table


def _cells(cost: ModuleCost) -> tuple[str, str, str]:
    return f"{cost.parameters:,}", f"{cost.megabytes:.2f}", f"{cost.flops / 1e9:.3f}"


def training_step(config: ModelConfig, *, checkpointing: bool, seconds: float = SECONDS) -> tuple[int, float]:
    """Run a forward and backward pass in float32; return this process's peak memory in bytes, and the seconds."""
    torch.manual_seed(0)
    network = TfswaUNet(config, checkpointing=checkpointing).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    stems = 0.1 * torch.randn(1, len(config.stems), config.channels, round(seconds * config.sample_rate))
    started = time.monotonic()
    estimate = separate_waveform(network, stems.sum(dim=1), n_fft=config.n_fft, hop=config.hop)
    torch.autograd.backward(waveform_l1(estimate, stems, torch.ones(stems.shape[:2])))
    elapsed = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), elapsed  # macOS counts bytes, Linux KiB


def measure_training_step(config: ModelConfig, *, checkpointing: bool) -> tuple[int, float]:
    """Run `training_step` in a new process, for its own peak. Raises MemoryError if that runs out of memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(training_step, config, checkpointing=checkpointing).result()
        except BrokenProcessPool:
            raise MemoryError("the training step ran out of memory and was killed") from None


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", nargs="?", default="small", choices=sorted(PRESETS))
    parser.add_argument("--depth", type=int, default=1, help="levels of modules to list (default 1)")
    parser.add_argument(
        "--memory",
        nargs="?",
        const="both",
        choices=("off", "on", "both"),
        help="also measure a training step, with gradient checkpointing off, on, or both (default both)",
    )
    options = parser.parse_args(arguments)
    config, console = PRESETS[options.preset], Console()
    console.print(cost_table(f"TFSWA-UNet, preset {options.preset}", describe(config, depth=options.depth)))
    for checkpointing in {"off": [False], "on": [True], "both": [False, True], None: []}[options.memory]:
        title = (
            f"Training step on {SECONDS:.0f} s of stereo, checkpointing {'on' if checkpointing else 'off'}"
        )
        try:
            peak, elapsed = measure_training_step(config, checkpointing=checkpointing)
        except MemoryError as error:
            parser.exit(1, f"{title}: {error}\n")
        console.print(f"{title}: peak {peak / 1e9:.2f} GB, {elapsed:.1f} s", highlight=False)


if __name__ == "__main__":
    main()
