"""Backends, which run the network: what they have in common, which one to use, and loading it.

Axis letters: b batch, s model stem, k requested stem, c channel, n samples.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import DeviceError, install_command
from tfswa_sep.inference import hardware
from tfswa_sep.inference.families.family import StemModel
from tfswa_sep.options import Runtime, kind_of_file

# Devices that only one backend can use.
_BACKEND_OF_DEVICE = {"mps": "torch", "coreml": "onnx", "gpu": "openvino", "npu": "openvino"}
_PACKAGES = {"onnx": ("onnxruntime",), "torch": ("torch", "safetensors", "einops"), "openvino": ("openvino",)}


class Backend(StemModel, Protocol):
    """A loaded model, which may be called from several threads."""

    @property
    def name(self) -> str:
        """The backend: "onnx", "openvino" or "torch"."""
        ...

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0", "mps", "coreml", "gpu", "npu"."""
        ...

    @property
    def precision(self) -> str:
        """One of "fp32", "bf16", "fp16" or "int8"; "" if unknown."""
        ...

    @property
    def workers(self) -> int:
        """How many concurrent calls use the device best."""
        ...

    @property
    def batch_size(self) -> int:
        """How many segments per call use the device best."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Fallbacks so far, such as to less memory or another device: one line each."""
        ...

    def __call__(
        self, segments: NDArray[np.float32], *, stem_matrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Separate segments (b, c, n).

        Args:
            segments: float32 at full scale +-1.
            stem_matrix: (k, s), applied before the inverse STFT, so that one stem of four, or the sum of three,
                costs one inverse STFT; None for the model's own stems.

        Returns:
            (b, s, c, n), or (b, k, c, n) with a matrix.

        Raises:
            ModelError: The network fails.
            DeviceError: Out of memory.
        """
        ...


@runtime_checkable
class AnyLength(Backend, Protocol):
    """A backend that also takes segments shorter than those of its plan, as live separation needs."""

    def fit_segment(self, samples: int) -> int:
        """The shortest segment that the network takes and that has at least so many samples; at most its own."""
        ...

    def newest(
        self, segments: NDArray[np.float32], samples: int, *, stem_matrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Separate segments (b, c, n) whose length is one of `fit_segment`, but return only their end.

        Most of a live window was played before: this spares its masks and inverse transforms.

        Returns:
            (b, k, c, samples).

        Raises:
            ModelError: The network fails.
            DeviceError: Out of memory.
        """
        ...


def choose_backend(available: Sequence[str], runtime: Runtime) -> str:
    """The backend that `runtime` names, or for "auto" the fastest one.

    Args:
        available: The backends that the model has files for.
        runtime: The user's choice.

    Raises:
        DeviceError: The backend's package is missing, or the backend cannot use the device.
    """
    backend, device = runtime.backend, runtime.device
    if backend == "auto":
        backend = _fastest(available, runtime)
    if kind_of_file(backend) in available and (package := _missing(backend)):  # else report the missing file
        install = install_command(package) if backend == "onnx" else install_command(extra=backend)
        raise DeviceError(f"the {backend} backend needs the package {package}: {install}")
    if device in _BACKEND_OF_DEVICE and _BACKEND_OF_DEVICE[device] != backend:
        raise DeviceError(
            f"the {backend} backend cannot use {device}: use --backend {_BACKEND_OF_DEVICE[device]}"
        )
    return backend


def load_backend(
    backend: str,
    path: Path,
    runtime: Runtime,
    *,
    precision: str = "",
    settings: Mapping[str, str] = MappingProxyType({}),
    notes: Sequence[str] = (),
    cache: Path | None = None,
    takes_turns: bool = False,
) -> Backend:
    """Load a model file.

    Args:
        backend: "onnx", "openvino" or "torch".
        path: The file.
        runtime: Device, precision (for torch and OpenVINO) and threads.
        precision: The precision of an ONNX file, "" if unknown.
        settings: What an ONNX file's metadata lacks, see `families.choose`.
        notes: Fallbacks that led to this backend, one line each.
        cache: Folder for networks that OpenVINO compiled or ONNX Runtime optimized, which load faster; None for none.
        takes_turns: Whether it is one of several networks that run in turn.

    Raises:
        DeviceError: The device is missing or cannot compute.
        ModelError: The file is damaged.
    """
    if backend == "onnx":
        from tfswa_sep.inference.onnx_backend import OnnxBackend

        return OnnxBackend(
            path,
            device=runtime.device,
            threads=runtime.threads,
            precision=precision,
            settings=settings,
            notes=notes,
            cache=cache,
            takes_turns=takes_turns,
        )
    if backend == "openvino":
        from tfswa_sep.inference.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(
            path,
            device=runtime.device,
            threads=runtime.threads,
            precision="int8" if precision == "int8" else runtime.precision,
            settings=settings,
            cache=cache,
        )
    from tfswa_sep.inference.torch_backend import TorchBackend

    return TorchBackend(path, device=runtime.device, precision=runtime.precision, threads=runtime.threads)


def can_fall_back(available: Sequence[str], runtime: Runtime, failed: str) -> bool:
    """Whether ONNX on the CPU may replace a GPU that failed and was chosen automatically."""
    automatic = runtime.backend == runtime.device == "auto"
    return automatic and failed == "torch" and "onnx" in available and not _missing("onnx")


def _fastest(available: Sequence[str], runtime: Runtime) -> str:
    device = runtime.device
    if device in ("gpu", "npu"):
        return "openvino"
    if "onnx" not in available and available:
        return available[0]
    on_cpu = "openvino" if hardware.prefers_openvino(runtime) else "onnx"
    if "torch" not in available or device in ("cpu", "coreml"):
        return on_cpu
    if device != "auto":  # the user chose a GPU
        return "onnx" if device != "mps" and _missing("torch") else "torch"
    return "torch" if _has_gpu() else on_cpu


def _missing(backend: str) -> str | None:
    """The first of a backend's packages that is not installed."""
    return next((name for name in _PACKAGES[backend] if importlib.util.find_spec(name) is None), None)


def _has_gpu() -> bool:
    """Whether the torch backend can be used and sees a GPU."""
    # Importing torch takes seconds, so look for a driver first.
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA; WSL; AMD
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in drivers):
        return False
    if _missing("torch"):
        return False
    torch = importlib.import_module("torch")
    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())
