"""Several processes, one per GPU or, for tests, per core; `torchrun` or `srun` starts them (see CLUSTER.md)."""

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
from tfswa_sep.inference.torch_backend import processor_multiplies_bf16
from tfswa_sep.model.blocks import Stage

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h


class Autocast(MixedPrecision):
    """Mixed precision that leaves inputs alone: the masks multiply the mixture, which bf16 would round."""

    def convert_input(self, data: Any) -> Any:
        """As it is."""
        return data


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes. torch's own, SyncBatchNorm, refuses the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, d, f, t) -> (b, d, f, t)"""
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        wide = x.float()  # statistics in bf16 would be too coarse; torch's own batch norm does the same
        mean: Tensor = _mean_of_all(wide.mean(dim=(0, 2, 3)))
        centred = wide - mean[:, None, None]
        variance: Tensor = _mean_of_all(centred.square().mean(dim=(0, 2, 3)))
        with torch.no_grad():
            share = self.momentum or 0.0
            self.running_mean.lerp_(mean, share)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * count / (count - 1), share)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def _mean_of_all(x: Tensor) -> Tensor:
    return all_reduce(x) / distributed.get_world_size()  # type: ignore[no-any-return,no-untyped-call]


def on_cuda(accelerator: str) -> bool:
    """Whether `training.accelerator` means a CUDA card here."""
    return accelerator != "cpu" and torch.cuda.is_available()


def pick_precision(wanted: str, accelerator: str = "auto") -> str:
    """`auto` -> bf16 where the hardware multiplies it, else float32 (emulated bf16 is many times slower)."""
    if wanted != "auto":
        return wanted
    if on_cuda(accelerator):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = processor_multiplies_bf16()
    return "bf16-mixed" if fast else "32-true"


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step; returns whether it could be set.

    A step on the CPU frees gigabytes that the next one allocates again. Returned to the system in between,
    they come back as new pages to clear and map: a step of `small` then takes 1.3 times as long (measured).
    Other C libraries have no such setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No mappings of their own, which would be unmapped when freed, and no trimming of the heap's end.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))


def settle(device: torch.device, *, fused_attention: bool) -> None:
    """Set what a process that trains on `device` needs set once: its memory, and the kernels of attention.

    fused_attention: in one kernel, or as matrix products, which are quicker on a processor for few tokens.
    """
    if device.type == "cpu":
        keep_freed_memory()
    torch.backends.cuda.enable_flash_sdp(fused_attention)  # the processor's too, in spite of its name
    torch.backends.cuda.enable_mem_efficient_sdp(fused_attention)


def launch(settings: Any) -> Fabric:
    """The Fabric of a run. Raises UsageError for a precision or strategy that is unknown or does not fit."""
    precision = pick_precision(settings.precision, settings.accelerator)
    cuda = on_cuda(settings.accelerator)
    here, machines, environment = _started()
    if precision not in ("32-true", "bf16-mixed", "16-mixed"):
        raise UsageError(
            f"unknown training.precision {precision!r}: choose auto, 32-true, bf16-mixed, 16-mixed"
        )
    plugin: Precision = Precision()
    if precision == "bf16-mixed":
        plugin = Autocast("bf16-mixed", device="cuda" if cuda else "cpu")
    elif precision == "16-mixed":
        plugin = Autocast("16-mixed", device="cuda" if cuda else "cpu")
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=here,
        num_nodes=machines,
        strategy=_strategy(settings, precision, world=here * machines),
        plugins=[plugin, environment],
    )
    fabric.launch()
    return fabric


def _started() -> tuple[int, int, ClusterEnvironment]:
    """Processes per machine, machines, and how they find each other: torchrun or srun started them, or nobody.

    Raises UsageError for tasks of srun that are not spread evenly, or not said to be.
    """
    if "LOCAL_WORLD_SIZE" in os.environ:  # first, as torchrun may run under srun
        here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return here, max(world // here, 1), TorchElasticEnvironment()
    # Of the step, which srun alone sets: the tasks of a job are in its script's environment, too.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        tasks, machines = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
        here = int(os.environ.get("SLURM_NTASKS_PER_NODE", 0))
        if here * machines != tasks:
            raise UsageError(
                f"srun started {tasks} tasks on {machines} nodes: pass --nodes and --ntasks-per-node, with"
                " as many tasks per node as it has GPUs"
            )
        return here, machines, SLURMEnvironment(auto_requeue=False)
    return 1, 1, LightningEnvironment()


def _strategy(settings: Any, precision: str, *, world: int) -> Strategy | str:
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
    if world == 1:
        return "auto"
    if name == "ddp":
        # Synchronised batch norms are alike in all processes: nothing to send.
        return DDPStrategy(broadcast_buffers=False)
    return ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Cut every weight into as many pieces as there are processes; a stage at a time is whole.

    FSDP2: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
    """
    # Its warning is of changes in place to what the network returns: the losses make none.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # it takes no other
    for module in model.modules():
        if isinstance(module, Stage):
            fully_shard(module, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def gather(state: Any) -> Any:
    """Pieces in dictionaries and lists -> whole tensors in main memory. All processes have to call it."""
    return tree_map_only(DTensor, lambda piece: piece.full_tensor().cpu(), state)


def cut_like(value: Tensor, example: Tensor) -> Tensor:
    """A whole tensor -> this process's piece of it, where `example` is one; on the example's device."""
    value = value.to(example.device)
    if not isinstance(example, DTensor):
        return value
    # Every process holds the same value: none has to send it.
    return distribute_tensor(value, example.device_mesh, example.placements, src_data_rank=None)


def synchronise_norms(model: nn.Module, fabric: Fabric) -> nn.Module:
    """Let the batch norms of several processes count the whole batch; alone nothing changes."""
    if fabric.world_size == 1:
        return model
    if fabric.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
    return model
