"""The backend for Intel's processors: the network of an ONNX file in OpenVINO."""

from __future__ import annotations

import queue
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import DeviceError, ModelError
from tfswa_sep.inference.families.family import Graph, Shape
from tfswa_sep.inference.graph_backend import GraphBackend, first_line
from tfswa_sep.inference.hardware import choose_workers, count_cores

# `import openvino` reports itself to its makers' analytics, unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402


class OpenVinoBackend(GraphBackend):
    """A model in an ONNX file; see backend.Backend.

    Args:
        path: The file.
        device: "auto" or "cpu"; "gpu" or "npu" of an Intel processor.
        threads: CPU threads; None for one per physical core.
        precision: "fp32", "int8" (the file's), or "auto": bf16 on CPUs that compute in it, fp16 on other devices.
        settings: What the file's metadata lacks, see `families.choose`.
        cache: Folder for compiled networks, which load four times as fast; None for none.

    Raises:
        ModelError: The file is damaged or not a tfswa-sep model.
        DeviceError: The device is missing.
    """

    name = "openvino"
    notes = ()

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
        settings: Mapping[str, str] = MappingProxyType({}),
        cache: Path | None = None,
    ) -> None:
        core = openvino.Core()
        self.device = "cpu" if device == "auto" else device
        present = [name.partition(".")[0].lower() for name in core.available_devices]
        if self.device not in present:
            raise DeviceError(
                f"OpenVINO finds no {device} here: use --device {' or '.join(dict.fromkeys(present))}"
            )
        try:
            model = core.read_model(path)
            properties = _metadata(model)
        except Exception as error:  # OpenVINO raises RuntimeError, mostly
            raise ModelError(
                f"{path} is damaged or not an ONNX model ({first_line(error)}): download it again"
            ) from None
        graph = Graph(inputs=_shapes_of(model.inputs), outputs=_shapes_of(model.outputs))
        super().__init__(path, properties, graph, settings)
        kind = self.device.upper()
        self.precision = _precision(core, kind, precision)
        threads = threads or count_cores() or 1
        self.workers = choose_workers(threads)
        options: dict[str, Any] = {"NUM_STREAMS": self.workers}
        if self.precision != "int8":
            options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "fp16": "f16"}.get(
                self.precision, self.precision
            )
        if kind == "CPU":
            options["INFERENCE_NUM_THREADS"] = threads
        else:  # these want sizes that are known beforehand
            self._any_length, self._one_per_call = False, True
            model.reshape({name: [1, *shape[1:]] for name, shape in self.family.inputs.items()})
        if cache is not None:
            options["CACHE_DIR"] = str(cache)
        try:
            compiled = _compile(core, model, kind, options)
        except Exception as error:
            raise DeviceError(
                f"OpenVINO cannot run {path} on {self.device} ({first_line(error)}): use --backend onnx"
            ) from None
        # A request is for one call at a time.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.workers):
            self._requests.put(compiled.create_infer_request())

    def _run_network(self, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        request = self._requests.get()
        try:
            results = request.infer(inputs, share_inputs=True)
            return [results[name] for name in self._outputs]
        finally:
            self._requests.put(request)


def _metadata(model: Any) -> dict[str, str]:
    """What the ONNX file says about itself."""
    if not model.has_rt_info("framework"):
        return {}
    return {key: str(each.value) for key, each in model.get_rt_info("framework").astype(dict).items()}


def _shapes_of(ports: Any) -> dict[str, Shape]:
    return {
        port.any_name: tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
        for port in ports
    }


def _precision(core: openvino.Core, kind: str, requested: str) -> str:
    if requested != "auto":
        return requested
    able = core.get_property(kind, "OPTIMIZATION_CAPABILITIES")
    if kind == "CPU":
        return "bf16" if "BF16" in able else "fp32"
    return "fp16" if "FP16" in able else "fp32"


def _compile(core: openvino.Core, model: Any, kind: str, options: dict[str, Any]) -> Any:
    """Compile a network; without a cache if that cannot be used."""
    try:
        return core.compile_model(model, kind, options)
    except Exception:
        if options.pop("CACHE_DIR", None) is None:
            raise
    return core.compile_model(model, kind, options)
