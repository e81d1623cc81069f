"""What runs the network: one file a backend, behind one small protocol, segment in, stems out.

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import DeviceError
from tfswa_sep.installation import install_command
from tfswa_sep.options import Runtime

_BACKEND_OF_DEVICE = {"mps": "torch", "coreml": "onnx"}  # the backend that knows a device
_PACKAGES = {"onnx": ("onnxruntime",), "torch": ("torch", "safetensors", "einops")}


class Backend(Protocol):
    """A loaded model. Attributes do not change; calls may come from several threads."""

    @property
    def name(self) -> str:
        """Of the backend: "onnx" or "torch"."""
        ...

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0", "mps", "coreml"."""
        ...

    @property
    def precision(self) -> str:
        """Of its numbers: "fp32", "bf16", "fp16" or "int8"; "" where that is not on record."""
        ...

    @property
    def stems(self) -> tuple[str, ...]:
        """The model's s stems, in the order of its output."""
        ...

    @property
    def sample_rate(self) -> int:
        """Hz."""
        ...

    @property
    def channels(self) -> int:
        """c."""
        ...

    @property
    def segment_samples(self) -> int:
        """n, the length of every segment."""
        ...

    @property
    def margin_samples(self) -> int:
        """Samples at each side of a segment that lack context: the caller throws them away."""
        ...

    @property
    def workers(self) -> int:
        """Calls at once, from as many threads, that use the device best."""
        ...

    @property
    def batch_size(self) -> int:
        """Segments a call that use the device best."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What went otherwise than asked for in the calls so far, and was mended: one line each."""
        ...

    def __call__(
        self, segments: NDArray[np.float32], *, stem_matrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Separate segments (b, c, n) into stems (b, s, c, n), float32 at full scale +-1.

        stem_matrix: (k, s), applied to the stems' spectra before the inverse transform; the result is then
        (b, k, c, n). One stem of four costs one inverse transform, not four; so does the sum of three.
        Raises ModelError if the network fails, DeviceError if memory runs out.
        """
        ...


def choose_backend(offered: Sequence[str], runtime: Runtime) -> str:
    """The fastest backend that is there, or the one that was named; see options.Runtime.

    Args:
        offered: The backends that the model has files for.
        runtime: What was asked for.

    Raises:
        DeviceError: The backend's package is missing, or the backend cannot use the device.
    """
    backend, device = runtime.backend, runtime.device
    if backend == "auto":
        backend = _fastest(offered, device)
    if backend in offered and (package := _missing(backend)):  # else the missing file is what to report
        install = install_command(extra="torch") if backend == "torch" else install_command(package)
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
    notes: Sequence[str] = (),
) -> Backend:
    """Load a model's file.

    Args:
        backend: "onnx" or "torch".
        path: The file.
        runtime: Device, precision (of torch) and threads.
        precision: Of an ONNX file's numbers, as far as it is on record.
        notes: What the user should know of the choice, one line each.

    Raises:
        DeviceError: The device is missing or cannot compute.
        ModelError: The file is damaged.
    """
    if backend == "onnx":
        from tfswa_sep.inference.onnx_backend import OnnxBackend

        return OnnxBackend(
            path, device=runtime.device, threads=runtime.threads, precision=precision, notes=notes
        )
    from tfswa_sep.inference.torch_backend import TorchBackend

    return TorchBackend(path, device=runtime.device, precision=runtime.precision, threads=runtime.threads)


def can_fall_back(offered: Sequence[str], runtime: Runtime, failed: str) -> bool:
    """Whether ONNX on the CPU may do the work of a GPU that nobody asked for by name and that failed."""
    chosen_freely = runtime.backend == runtime.device == "auto"
    return chosen_freely and failed == "torch" and "onnx" in offered and not _missing("onnx")


def _fastest(offered: Sequence[str], device: str) -> str:
    if "onnx" not in offered and offered:
        return offered[0]
    if "torch" not in offered or device in ("cpu", "coreml"):
        return "onnx"
    if device != "auto":  # a GPU was asked for by name
        return "onnx" if device != "mps" and _missing("torch") else "torch"
    return "torch" if _has_gpu() else "onnx"


def _missing(backend: str) -> str | None:
    """The first package that a backend needs and that is not installed."""
    return next((name for name in _PACKAGES[backend] if importlib.util.find_spec(name) is None), None)


def _has_gpu() -> bool:
    """Whether the torch backend can be used and sees a GPU."""
    # Importing torch takes seconds: look for a driver first.
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # Nvidia; Windows' Linux subsystem; AMD
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in drivers):
        return False
    if _missing("torch"):
        return False
    torch = importlib.import_module("torch")
    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())
