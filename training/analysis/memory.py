"""Estimate the memory that a configuration needs: `python -m training.analysis.memory data=musdb18hq model=reference`.

`data` sets the length of an example. The estimate runs two training steps on fake tensors, which have shapes but no
data, and tracks the live bytes. --measure also runs the steps, and reads the peak from torch's statistics (CUDA) or
profiler (CPU). Neither includes libraries or the workspace memory of kernels: leave a tenth free.
"""

from __future__ import annotations

import sys
import weakref
from itertools import accumulate
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from training.analysis.rehearsal import AllowFakeValues, rehearse
from training.configuration import run_command
from training.data.loader import seconds_of


class LiveBytes(AllowFakeValues):  # type: ignore[no-untyped-call]
    """Counts the bytes of all live tensors, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count its results; views share storage."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def estimate_peak(config: DictConfig, *, checkpointing: bool | None = None) -> int:
    """Estimate the peak bytes of tensors in a training step with fake tensors."""
    counter = LiveBytes()
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        rehearse(config, checkpointing=checkpointing)
    return counter.peak


def measure_peak(config: DictConfig, *, checkpointing: bool | None = None) -> int:
    """Measure the peak bytes of tensors in a training step, as counted by torch."""
    if config.training.accelerator != "cpu" and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        rehearse(config, checkpointing=checkpointing)
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        rehearse(config, checkpointing=checkpointing)
    results: Any = profiler.profiler
    changes = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(max(accumulate(event.nbytes() for event in changes)))


def report(config: DictConfig, *, measure: bool) -> None:
    """Print the estimate without and with gradient checkpointing, and the saving."""
    training = config.training
    print(
        f"{config.model.preset}, batches of {training.batch_size} examples of {seconds_of(config.data):g} s,"
        f" precision {training.precision}"
    )
    peaks = {}
    for checkpointing in (False, True):
        peaks[checkpointing] = estimate_peak(config, checkpointing=checkpointing)
        chosen = " (this configuration)" if checkpointing == config.model.checkpointing else ""
        print(
            f"checkpointing {'on ' if checkpointing else 'off'}  {peaks[checkpointing] / 1e9:7.2f} GB{chosen}"
        )
    print(f"checkpointing saves {1 - peaks[True] / peaks[False]:.0%}")
    if measure:
        measured, estimate = measure_peak(config), peaks[config.model.checkpointing]
        print(
            f"measured           {measured / 1e9:7.2f} GB, the estimate is off by {estimate / measured - 1:+.1%}"
        )
    if torch.cuda.is_available():
        print(f"this GPU has {torch.cuda.get_device_properties(0).total_memory / 1e9:.1f} GB")


if __name__ == "__main__":
    measure = "--measure" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--measure"]
    sys.exit(run_command(lambda config: report(config, measure=measure), about=__doc__, needs_data=False))
