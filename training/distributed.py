"""Training in several processes, one per GPU, started by `torchrun` or `srun` (see docs/multi-gpu.md)."""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.nn.functional import all_reduce
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from tfswa_sep.errors import UsageError
from tfswa_sep.inference.torch_backend import cpu_has_native_bf16
from tfswa_sep.model.blocks import Stage

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt parameters, from glibc's malloc.h


class Autocast(MixedPrecision):
    """Mixed precision with float32 inputs: the masks multiply the mixture, which bf16 would round."""

    def convert_input(self, data: Any) -> Any:
        """Return the data unchanged."""
        return data


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the batches of all processes, on the CPU, which torch's SyncBatchNorm rejects."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize. (b, d, f, t) -> (b, d, f, t)"""
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        x32 = x.float()  # bf16 is too coarse for statistics
        mean: Tensor = _mean_over_processes(x32.mean(dim=(0, 2, 3)))
        centred = x32 - mean[:, None, None]
        variance: Tensor = _mean_over_processes(centred.square().mean(dim=(0, 2, 3)))
        with torch.no_grad():
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * count / (count - 1), momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def _mean_over_processes(x: Tensor) -> Tensor:
    return all_reduce(x) / distributed.get_world_size()  # type: ignore[no-any-return,no-untyped-call]


def on_cuda(accelerator: str) -> bool:
    """Return whether `training.accelerator` selects a CUDA GPU on this machine."""
    return accelerator != "cpu" and torch.cuda.is_available()


def pick_precision(precision: str, accelerator: str = "auto") -> str:
    """Resolve "auto": bf16 if the hardware supports it, else float32 (emulated bf16 is many times slower)."""
    if precision != "auto":
        return precision
    on_gpu = on_cuda(accelerator)
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_native_bf16()
    return "bf16-mixed" if fast else "32-true"


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next step; returns whether that is possible (only with glibc).

    A step on the CPU frees gigabytes that the next one allocates again. If they are returned to the system in
    between, their pages must be mapped and cleared again: a step of `small` takes 1.3 times as long (measured).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Large blocks get no mappings of their own, which would be unmapped when freed; the heap is never trimmed.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))


def set_up_process(device: torch.device, *, fused_attention: bool) -> None:
    """Apply the settings of a process that trains on `device`: memory allocation and attention kernels.

    Fused attention kernels are slower than plain matrix products for short sequences on a CPU.
    """
    if device.type == "cpu":
        keep_freed_memory()
    torch.backends.cuda.enable_flash_sdp(fused_attention)  # applies to the CPU too
    torch.backends.cuda.enable_mem_efficient_sdp(fused_attention)


def launch(settings: Any) -> Fabric:
    """Launch Fabric for a run.

    Raises:
        UsageError: The precision or strategy is unknown or not supported.
    """
    precision = pick_precision(settings.precision, settings.accelerator)
    device = "cuda" if on_cuda(settings.accelerator) else "cpu"
    processes, nodes, environment = _detect_launcher()
    if precision not in ("32-true", "bf16-mixed", "16-mixed"):
        raise UsageError(
            f"unknown training.precision {precision!r}: choose auto, 32-true, bf16-mixed, 16-mixed"
        )
    plugin: Precision = Precision()
    if precision == "bf16-mixed":
        plugin = Autocast("bf16-mixed", device=device)
    elif precision == "16-mixed":
        plugin = Autocast("16-mixed", device=device)
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=processes,
        num_nodes=nodes,
        strategy=_strategy(settings, precision, world_size=processes * nodes),
        plugins=[plugin, environment],
    )
    fabric.launch()
    return fabric


def _detect_launcher() -> tuple[int, int, ClusterEnvironment]:
    """Return processes per node, nodes, and the environment of the launcher: torchrun, srun, or none.

    Raises:
        UsageError: srun has not been told to spread its tasks evenly over the nodes.
    """
    if "LOCAL_WORLD_SIZE" in os.environ:  # checked first, since torchrun may itself run under srun
        processes, world_size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return processes, max(world_size // processes, 1), TorchElasticEnvironment()
    # Only srun sets this variable; SLURM_NTASKS is also set in the job script itself.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
        processes = int(os.environ.get("SLURM_NTASKS_PER_NODE", 0))
        if processes * nodes != tasks:
            raise UsageError(
                f"srun started {tasks} tasks on {nodes} nodes: pass --nodes and --ntasks-per-node, with"
                " as many tasks per node as it has GPUs"
            )
        return processes, nodes, SLURMEnvironment(auto_requeue=False)
    return 1, 1, LightningEnvironment()


def _strategy(settings: Any, precision: str, *, world_size: int) -> Strategy | str:
    name = settings.strategy
    if name not in ("ddp", "fsdp"):
        raise UsageError(f"unknown training.strategy {name!r}: choose ddp or fsdp")
    if name == "fsdp":
        if settings.optimizer == "muon":
            raise UsageError(
                "training.optimizer=muon needs whole matrices, but training.strategy=fsdp shards them:"
                " add training.optimizer=adamw"
            )
        if precision == "16-mixed":
            raise UsageError("training.strategy=fsdp needs training.precision=bf16-mixed or 32-true")
    if world_size == 1:
        return "auto"
    if name == "ddp":
        # The new name of this option is unknown to torch 2.11.
        warnings.filterwarnings("ignore", message=r"`broadcast_buffers` is deprecated")
        return DDPStrategy(broadcast_buffers=False)  # batch norm statistics are synchronized anyway
    return ModelParallelStrategy(shard, data_parallel_size=world_size, tensor_parallel_size=1)


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard every weight over the processes with FSDP2, which gathers one stage at a time.

    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
    """
    # This warns of in-place changes to the network's output, which the losses do not make.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 needs it
    for module in model.modules():
        if isinstance(module, Stage):
            fully_shard(module, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def gather(state: Any) -> Any:
    """Replace shards in dictionaries and lists by whole tensors on the CPU. Every process must call this."""
    return tree_map_only(DTensor, lambda tensor: tensor.full_tensor().cpu(), state)


def shard_like(value: Tensor, example: Tensor) -> Tensor:
    """Move a whole tensor to the example's device, and shard it if the example is sharded."""
    value = value.to(example.device)
    if not isinstance(example, DTensor):
        return value
    # Every process has the whole value, so none needs to send it.
    return distribute_tensor(value, example.device_mesh, example.placements, src_data_rank=None)


def synchronise_norms(model: nn.Module, fabric: Fabric) -> nn.Module:
    """Synchronize batch norm statistics over the processes, if there are several."""
    if fabric.world_size == 1:
        return model
    if fabric.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    # What replaces it is private, and has no gradient in torch 2.11.
    warnings.filterwarnings("ignore", message=r"torch\.distributed\.nn\.functional\.all_reduce is deprecated")
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
    return model
