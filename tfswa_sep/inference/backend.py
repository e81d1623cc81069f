"""What runs the network: one file a backend, behind one small protocol, segment in, stems out.

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import DeviceError, ModelError, UsageError

BACKENDS = ("auto", "onnx", "torch")
_ONLY = {"mps": "torch", "coreml": "onnx"}  # the backend that knows a device
_DEVICE = re.compile(r"auto|cpu|mps|coreml|cuda(:\d{1,3})?")
_INSTALL = {  # what a backend needs, and what brings it
    "onnx": (("onnxruntime",), "pip install onnxruntime"),
    "torch": (("torch", "safetensors", "einops"), 'pip install "tfswa-sep[torch]"'),
}


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
        self, segment: NDArray[np.float32], *, mix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Separate segments (b, c, n) into stems (b, s, c, n), float32 at full scale +-1.

        mix: a (k, s) matrix applied to the stems' spectra before the inverse transform; the result is then
        (b, k, c, n). One stem of four costs one inverse transform, not four; so does the sum of three.
        Raises ModelError if the network fails, DeviceError if memory runs out.
        """
        ...


class _ModelFile(Protocol):
    @property
    def backend(self) -> str: ...
    @property
    def precision(self) -> str: ...


class _Model(Protocol):
    """What is needed of registry.ModelInfo: this package does not import the registry."""

    @property
    def name(self) -> str: ...
    @property
    def files(self) -> Sequence[_ModelFile]: ...


ModelT = TypeVar("ModelT", bound=_Model)


def load_backend(
    info: ModelT,
    fetch: Callable[[ModelT, str], Path],
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
) -> Backend:
    """Load a model with the fastest backend that is there, or with the one named.

    fetch: registry.fetch, gives the verified local file of the model for a backend.
    backend: "onnx", "torch", or "auto": torch if there is a GPU (CUDA or MPS) and a torch file, else onnx.
    device: "auto", "cpu", "cuda", "cuda:N", "mps" (torch) or "coreml" (onnx); where both are "auto" and the
    GPU cannot be used, the CPU is, and the backend's notes say so.
    precision: "auto" lets torch compute in 16 bits where that is faster; the file decides for onnx.
    threads: CPU threads, None for one a physical core.
    Raises UsageError for an unknown backend, DeviceError if its package or the device is missing, ModelError
    if the model has no file for it or the file is damaged.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend '{backend}': choose from {', '.join(BACKENDS)}")
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"unknown device '{device}': choose from auto, cpu, cuda, cuda:N, mps, coreml")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot compute: give 1 or more")
    if backend != "auto":
        return _load(info, fetch, backend, device=device, precision=precision, threads=threads)
    chosen = _choose_backend(info, device)
    try:
        return _load(info, fetch, chosen, device=device, precision=precision, threads=threads)
    except DeviceError as error:
        other = any(file.backend == "onnx" for file in info.files) and not _missing("onnx")
        if device != "auto" or chosen != "torch" or not other:
            raise
        why = str(error).rpartition(":")[0]  # without the advice
    loaded = _load(info, fetch, "onnx", device="cpu", precision=precision, threads=threads)
    cast(Any, loaded).notes = (f"{why}, so the processor did the work",)
    return loaded


def _load(
    info: ModelT,
    fetch: Callable[[ModelT, str], Path],
    backend: str,
    *,
    device: str,
    precision: str,
    threads: int | None,
) -> Backend:
    """A backend by its name; see load_backend."""
    offered = dict.fromkeys(file.backend for file in info.files)  # each once
    if backend not in offered:
        precisions = " or ".join(sorted({file.precision for file in info.files if file.precision}))
        kind = f"{backend} file in {precisions}" if precisions else f"{backend} file"
        raise ModelError(f"model '{info.name}' has no {kind}: use --backend {' or '.join(offered) or 'auto'}")
    if package := _missing(backend):
        raise DeviceError(f"the {backend} backend needs the package {package}: {_INSTALL[backend][1]}")
    if device in _ONLY and _ONLY[device] != backend:
        raise DeviceError(f"the {backend} backend cannot use {device}: use --backend {_ONLY[device]}")
    path = fetch(info, backend)  # before the heavy import: a damaged file is known at once
    if backend == "onnx":
        from tfswa_sep.inference.onnx_backend import OnnxBackend

        recorded = next(file.precision for file in info.files if file.backend == backend)
        return OnnxBackend(path, device=device, threads=threads, precision=recorded)
    loaded: Backend = importlib.import_module("tfswa_sep.inference.torch_backend").TorchBackend(
        path, device=device, precision=precision, threads=threads
    )
    return loaded


def _choose_backend(info: _Model, device: str) -> str:
    offered = [file.backend for file in info.files]
    if "onnx" not in offered and offered:
        return offered[0]
    if "torch" not in offered or device in ("cpu", "coreml"):
        return "onnx"
    if device != "auto":  # a GPU was asked for by name
        return "onnx" if device != "mps" and _missing("torch") else "torch"
    return "torch" if _has_gpu() else "onnx"


def _missing(backend: str) -> str | None:
    """The first package that a backend needs and that is not installed."""
    return next((name for name in _INSTALL[backend][0] if importlib.util.find_spec(name) is None), None)


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
