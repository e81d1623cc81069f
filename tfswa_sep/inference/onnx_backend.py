"""The light backend: the network in ONNX Runtime."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tfswa_sep.errors import DeviceError, ModelError, install_command
from tfswa_sep.inference.families.family import Graph, Shape
from tfswa_sep.inference.graph_backend import GraphBackend, first_line
from tfswa_sep.inference.hardware import choose_workers, count_cores, cpu_flags

_ACCELERATORS = {"cuda": "CUDA", "coreml": "Core ML"}
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"  # which provider runs which node
_LARGEST_KEPT = (
    32 << 20
)  # bytes of a model whose optimized graph is kept: a larger one runs for longer anyway
_FATAL_ONLY = 4  # ONNX Runtime's log severity: errors are raised anyway


class OnnxBackend(GraphBackend):
    """A model in an ONNX file; see backend.Backend.

    `workers` concurrent calls share the threads: two segments side by side on one core each took 0.27 s per
    segment, one after the other on both cores 0.36 s (measured).

    Args:
        path: The file.
        device: What runs the network: "auto" (CUDA if it works), "cpu", "cuda", "cuda:N" or "coreml".
        threads: CPU threads; None for one per physical core.
        precision: The file's precision, "" if unknown.
        settings: What the file's metadata lacks, see `families.choose`.
        notes: Fallbacks that led to this backend, one line each.
        cache: Folder for the optimized graphs of small models, which load in a third of the time; None for none.
        takes_turns: Whether it is one of several networks that run in turn: then each frees its memory after a run,
            which takes a twentieth more time.

    Raises:
        ModelError: The file is damaged or not a tfswa-sep model.
        DeviceError: The device is missing.
    """

    name = "onnx"

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "",
        settings: Mapping[str, str] = MappingProxyType({}),
        notes: Sequence[str] = (),
        cache: Path | None = None,
        takes_turns: bool = False,
    ) -> None:
        self.notes = tuple(notes)
        self.precision = precision
        providers = _execution_providers(device)
        options = onnxruntime.SessionOptions()
        threads = threads or count_cores()
        self.workers = choose_workers(threads)
        options.intra_op_num_threads = threads // self.workers
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Spinning while waiting took a tenth more CPU time on a busy machine (measured).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Memory patterns doubled the memory of concurrent calls and saved no time (measured).
        options.enable_mem_pattern = False
        options.log_severity_level = _FATAL_ONLY
        if _is_accelerator(device):
            options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
        try:
            self._session = _open_session(path, options, providers, cache)
            properties: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise ModelError(
                f"{path} is damaged or not an ONNX model ({first_line(error)}): download it again"
            ) from None
        self._run_options = onnxruntime.RunOptions()
        if takes_turns:
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.device = _device_of(self._session, requested=device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if others := {each.type for each in (*inputs, *outputs)} - {"tensor(float)"}:
            raise ModelError(f"{path} does not take and give 32-bit floats but {', '.join(sorted(others))}")
        super().__init__(
            path, properties, Graph(inputs=_shapes_of(inputs), outputs=_shapes_of(outputs)), settings
        )

    def _run_network(self, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = self._session.run(self._outputs, inputs, self._run_options)
        return outputs


def _shapes_of(arguments: Sequence[Any]) -> dict[str, Shape]:
    """The names and shapes of inputs or outputs, where None is a size of any value, such as the batch's."""
    return {
        argument.name: tuple(size if isinstance(size, int) else None for size in argument.shape)
        for argument in arguments
    }


def _execution_providers(device: str) -> list[Any]:
    """ONNX Runtime's execution providers for a device, best first. Raises DeviceError if it lacks them."""
    kind, _, number = device.partition(":")
    built_with = onnxruntime.get_available_providers()
    providers: list[Any] = []
    if kind == "cuda" or (kind == "auto" and "CUDAExecutionProvider" in built_with):
        providers.append(("CUDAExecutionProvider", {"device_id": int(number or 0)}))
    elif kind == "coreml":
        providers.append(("CoreMLExecutionProvider", {}))
    if providers and providers[0][0] not in built_with:
        replace = f", or replace it: {install_command('onnxruntime-gpu')}" if kind == "cuda" else ""
        raise DeviceError(
            f"this onnxruntime was built without {_ACCELERATORS[kind]}: use --device cpu{replace}"
        )
    if providers and kind != "coreml" and hasattr(onnxruntime, "preload_dlls"):
        # Finds CUDA's libraries where pip installs them. It prints what is missing.
        with redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    return [*providers, "CPUExecutionProvider"]


def _open_session(
    path: Path, options: onnxruntime.SessionOptions, providers: list[Any], cache: Path | None
) -> Any:
    """A session with the first provider that starts."""
    if cache is not None and len(providers) == 1 and path.stat().st_size <= _LARGEST_KEPT:
        with suppress(Exception):  # the folder cannot be written, or the model's file is damaged
            return _open_optimized(path, options, providers, cache)
        options.optimized_model_filepath = ""
    try:  # ONNX Runtime's own fallback prints to stdout
        return onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception:
        if len(providers) == 1:
            raise
    return onnxruntime.InferenceSession(str(path), options, providers=providers[-1:])


def _open_optimized(
    path: Path, options: onnxruntime.SessionOptions, providers: list[Any], cache: Path
) -> Any:
    """A session of the graph that an earlier one optimized here; the first keeps it in the folder `cache`.

    A kept graph belongs to one state of the model's file, one version of ONNX Runtime, and one kind of processor.
    """
    file = path.stat()
    state = (path.resolve(), file.st_size, file.st_mtime_ns, onnxruntime.__version__, sorted(cpu_flags()))
    kept = cache / f"{path.stem}-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}.onnx"
    if kept.is_file():
        with suppress(Exception):  # it is damaged, and is made again
            return onnxruntime.InferenceSession(str(kept), options, providers=providers, enable_fallback=0)
    cache.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(".tmp", dir=cache)
    os.close(handle)
    options.optimized_model_filepath = temporary
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        Path(temporary).replace(kept)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return session


def _is_accelerator(device: str) -> bool:
    """Whether the user chose a device other than the CPU, which must not be replaced by it."""
    return device.partition(":")[0] in _ACCELERATORS


def _device_of(session: Any, *, requested: str) -> str:
    """Where a session runs. Raises DeviceError if that is not the accelerator that the user chose."""
    provider: str = session.get_providers()[0]
    if _is_accelerator(requested):  # ONNX Runtime falls back silently
        name = _ACCELERATORS[requested.partition(":")[0]]
        if provider == "CPUExecutionProvider":
            raise DeviceError(
                f"ONNX Runtime could not start {name} and fell back to the CPU: "
                "run tfswa-sep doctor, or use --device cpu"
            )
        if not _runs_convolutions(session, provider):
            raise DeviceError(
                f"{name} cannot run this model's convolutions: use --precision fp32 or --device cpu"
            )
    if provider == "CPUExecutionProvider":
        return "cpu"
    if provider == "CUDAExecutionProvider":
        return requested if ":" in requested else "cuda:0"
    return "coreml"


def _runs_convolutions(session: Any, provider: str) -> bool:
    """Whether a provider runs any convolution, rather than leaving all to the CPU.

    True if this version of ONNX Runtime cannot tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return True
    return any(
        part.ep_name == provider and any("Conv" in node.op_type for node in part.get_nodes())
        for part in session.get_provider_graph_assignment_info()
    )
