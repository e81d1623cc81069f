"""Training steps on noise with the settings of a configuration, to measure memory, FLOPs and time."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from einops import rearrange
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tfswa_sep.constants import HOP, N_FFT
from tfswa_sep.model.stft_torch import istft, stft
from tfswa_sep.model.unet import TfswaUNet
from training import losses
from training.configuration import build_model_config
from training.data.loader import seconds_of, whole_seconds
from training.distributed import on_cuda, pick_precision, set_up_process
from training.optimizer import WeightAverage, make_optimizer

PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class AllowFakeValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets fake tensors pass where torch reads a value, such as Adam's step."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, or return a made-up value."""
        if isinstance(args[0] if args else None, FakeTensor):
            if func is torch.ops.aten._local_scalar_dense.default:
                return False if args[0].dtype == torch.bool else 1.0
            if func is torch.ops.aten.equal.default:
                return True
        return func(*args, **(kwargs or {}))


def overlap_add(spectrum: Tensor, *, length: int) -> Tensor:
    """Cost as much as istft, which rejects fake tensors. (b, s, 2c, f, t) -> (b, s, c, n)"""
    parts = rearrange(spectrum, "b s (c two) f t -> (b s c) f t two", two=2).contiguous()
    window = torch.hann_window(N_FFT, device=spectrum.device)[:, None]
    frames = torch.fft.irfft(torch.view_as_complex(parts), dim=1) * window
    padded = (1, (frames.shape[2] - 1) * HOP + N_FFT)
    waves = nn.functional.fold(frames, padded, (1, N_FFT), stride=(1, HOP))[:, 0, 0, N_FFT // 2 :][:, :length]
    envelope = torch.ones_like(waves[:1])
    return (waves / envelope).view(*spectrum.shape[:2], -1, length)


class Rehearsal:
    """A model with its optimizer, average, and one batch of noise to train on."""

    def __init__(self, config: DictConfig, *, checkpointing: bool | None = None) -> None:
        model_config, settings = build_model_config(config.model), config.training
        cuda = on_cuda(settings.accelerator)
        self.device, self.settings = torch.device("cuda" if cuda else "cpu"), settings
        set_up_process(self.device, fused_attention=settings.fused_attention)
        self.dtype = PRECISIONS[pick_precision(settings.precision, settings.accelerator)]
        self.seconds = whole_seconds(seconds_of(config.data), model_config)  # per example
        if checkpointing is None:
            checkpointing = config.model.checkpointing
        with self.device:
            self.model = TfswaUNet(model_config, checkpointing=checkpointing)
        for weight in self.model.parameters():  # Module.to does not work with fake tensors
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, settings)
        self.average = WeightAverage(self.model, settings.ema_decay)
        size = (
            settings.batch_size,
            len(model_config.stems),
            model_config.channels,
            round(self.seconds * model_config.sample_rate),
        )
        self.stems = 0.1 * torch.randn(size, device=self.device)
        self.mixture = self.stems.sum(dim=1)
        self.known = torch.ones(size[:2], device=self.device)

    def loss(self) -> Tensor:
        """Run the forward pass."""
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype) if mixed else nullcontext():
            mixture_spectrum = stft(self.mixture)
            spectrum = self.model(mixture_spectrum)
        inverse = overlap_add if isinstance(spectrum, FakeTensor) else istft
        total, _ = losses.weighted_loss(
            spectrum,
            self.mixture,
            self.stems,
            self.known,
            weights=self.settings.loss,
            mixture_spectrum=mixture_spectrum,
            inverse=inverse,
        )
        return total

    def step(self) -> None:
        """Run a training step: forward, backward, clipping, optimizer, average."""
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(self.loss())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.average.update(self.model, 0)


def rehearse(config: DictConfig, *, checkpointing: bool | None = None) -> Any:
    """Run two steps, since the optimizer's state is in memory throughout only in the second."""
    rehearsal = Rehearsal(config, checkpointing=checkpointing)
    rehearsal.step()
    rehearsal.step()
    return rehearsal
