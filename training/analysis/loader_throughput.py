"""Measure the throughput of mixing and training: `python -m training.analysis.loader_throughput --pools POOLS`."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from tfswa_sep.model.config import PRESETS
from tfswa_sep.model.stft_torch import stft
from tfswa_sep.model.unet import TfswaUNet
from training.analysis.throughput import synchronize
from training.distributed import pick_precision, set_up_process
from training.mixing.mixer import Mixer
from training.mixing.settings import MixSettings


def measure_rate(step: Callable[[int], object], batch: int, seconds: float, device: torch.device) -> float:
    """Return the examples per second of `step(number)`, after one untimed call."""
    step(0)
    synchronize(device)
    started = time.monotonic()
    for done in itertools.count(1):
        step(done)
        synchronize(device)
        if (elapsed := time.monotonic() - started) > seconds:
            return done * batch / elapsed
    raise AssertionError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.analysis.loader_throughput", description=__doc__
    )
    parser.add_argument("--pools", type=Path, required=True, help="folder written by training.corpus.build")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--batch", type=int, default=4, help="examples per batch (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="duration of each measurement (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    mixer = Mixer(options.pools, MixSettings(), device=device)
    set_up_process(device, fused_attention=device.type != "cpu")  # as training=cpu and training=h100 do
    model = TfswaUNet(PRESETS[options.preset]).to(device).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fixed = mixer.batch(0, options.batch)[0]
    bf16 = pick_precision("auto", accelerator=device.type) == "bf16-mixed"

    def mix(step: int) -> torch.Tensor:
        return mixer.batch(step, options.batch)[0]

    def train_on(mixture: torch.Tensor) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(stft(mixture)).abs().mean()
        loss.backward()

    console = Console()
    for name, step in (
        ("mixing", mix),
        ("model, forward and backward", lambda step: train_on(fixed)),
        ("mixing, then model", lambda step: train_on(mix(step))),
    ):
        rate = measure_rate(step, options.batch, options.seconds, device)
        console.print(
            f"{name:28} {rate:8.2f} examples per second ({mixer.settings.seconds} s each) on {device}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
