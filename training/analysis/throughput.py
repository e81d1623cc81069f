"""Measure how fast a configuration trains: `python -m training.analysis.throughput data=musdb18hq model=reference`.

Prints examples per second, model FLOPs utilization, and the duration of the whole run: measured on this machine, and
projected for other GPUs. If memory is short: training.batch_size=1 training.accumulate=16. FLOPs are counted as in
Chowdhery et al. (arXiv:2204.02311, appendix B): convolutions, matrix products and attention, forward and backward,
two per multiply-add; work repeated by checkpointing counts once. Data loading is not measured.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tfswa_sep.evaluation.provenance import machine
from training.analysis.rehearsal import AllowFakeValues, Rehearsal
from training.configuration import run_command

STEPS = 5  # timed, after one untimed step
PEAKS = {  # dense bf16 FLOP/s, from Nvidia's data sheets
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "RTX 4090": 165e12, "V100": 125e12,
}  # fmt: skip
PROJECTED = ("H100", "A100")
ASSUMED_UTILIZATIONS = (0.35, 0.15)  # the goal, and a pessimistic value for small matrices


def training_flops(config: DictConfig) -> int:
    """Count the FLOPs of one batch, forward and backward, with fake tensors."""
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), AllowFakeValues():  # type: ignore[no-untyped-call]
        rehearsal = Rehearsal(config, checkpointing=False)
        # The FLOPs of attention are counted only for plain matrix products, not for the CPU's fused kernel.
        with sdpa_kernel(SDPBackend.MATH), counter:
            torch.autograd.backward(rehearsal.loss())
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the peak FLOP/s of a device, and the source of that number."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peaks = [peak for part, peak in PEAKS.items() if part in name]
        if peaks and dtype != torch.float32:
            return peaks[0], f"data sheet of the {name}"
    a = torch.randn(2048, 2048, device=device).to(dtype)
    seconds = min(_time(lambda: a @ a, device) for _ in range(10))
    return 2 * 2048**3 / seconds, "fastest of 10 matrix products of 2048 x 2048 x 2048"


def projected_hours(flops: float) -> dict[str, float]:
    """Project the hours on one GPU, for each of PROJECTED and ASSUMED_UTILIZATIONS."""
    return {
        f"one {name} at {share:.0%} of {PEAKS[name] / 1e12:.0f} TFLOP/s": round(
            flops / (PEAKS[name] * share) / 3600, 1
        )
        for name in PROJECTED
        for share in ASSUMED_UTILIZATIONS
    }


def benchmark(config: DictConfig) -> dict[str, Any]:
    """Measure the training speed, and print and return it."""
    rehearsal = Rehearsal(config)
    rehearsal.step()
    seconds = statistics.median(_time(rehearsal.step, rehearsal.device) for _ in range(STEPS))
    training = config.training
    flops, (peak, source) = training_flops(config), peak_flops(rehearsal.device, rehearsal.dtype)
    rate, batches = training.batch_size / seconds, training.steps * training.accumulate
    result: dict[str, Any] = {
        "machine": machine() if rehearsal.device.type == "cpu" else torch.cuda.get_device_name(),
        "preset": config.model.preset,
        "precision": str(rehearsal.dtype).removeprefix("torch."),
        "batch_size": training.batch_size,
        "example_seconds": rehearsal.seconds,
        "batch_seconds": seconds,
        "examples_per_second": rate,
        "audio_seconds_per_second": rate * rehearsal.seconds,
        "flops_per_batch": flops,
        "peak_flops_per_second": peak,
        "peak_from": source,
        "model_flops_utilization": flops / seconds / peak,
        "steps": training.steps,
        "accumulate": training.accumulate,
        "hours": batches * seconds / 3600,
        "hours_projected_not_measured": projected_hours(batches * flops),
    }
    print(json.dumps(result, indent=2))
    return result


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(action: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(run_command(benchmark, about=__doc__, needs_data=False))
