"""The light backend: the network in ONNX Runtime, STFT and masks in NumPy.

Axis letters: b batch, s model stem, k requested stem, c channel, n samples, f bins, t frames.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tfswa_sep.errors import DeviceError, ModelError
from tfswa_sep.inference.features import band_features
from tfswa_sep.inference.hardware import choose_workers, count_cores
from tfswa_sep.inference.mask_apply import apply_masks
from tfswa_sep.inference.metadata import KEY, ModelMetadata, contradicts, parse_metadata
from tfswa_sep.inference.stft_numpy import stft
from tfswa_sep.installation import install_command
from tfswa_sep.model.config import ModelConfig

_ACCELERATORS = {"cuda": "CUDA", "coreml": "Core ML"}
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"  # which provider runs which node
_FATAL_ONLY = 4  # ONNX Runtime's log severity: errors are raised anyway


class OnnxBackend:
    """A model in an ONNX file; see backend.Backend.

    For each band, the graph maps features_0, ... (b, features, bins of the band, t) to masks_0, ...
    (b, s * parts * bins per token, tokens, t), float32; see features.py and mask_apply.py.

    `workers` concurrent calls share the threads: two segments side by side on one core each took 0.27 s per
    segment, one after the other on both cores 0.36 s (measured).

    Args:
        path: The file.
        device: What runs the network: "auto" (CUDA if it works), "cpu", "cuda", "cuda:N" or "coreml".
        threads: CPU threads; None for one per physical core.
        precision: The file's precision, "" if unknown.
        notes: Fallbacks that led to this backend, one line each.

    Raises:
        ModelError: The file is damaged or not a tfswa-sep model.
        DeviceError: The device is missing.
    """

    name = "onnx"
    batch_size = 1

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self._path = path
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
            self._session = _open_session(path, options, providers)
            text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise ModelError(
                f"{path} is damaged or not an ONNX model ({_first_line(error)}): download it again"
            ) from None
        self.device = _device_of(self._session, requested=device)
        self.metadata: ModelMetadata = parse_metadata(text, file=str(path))
        self.stems = self.metadata.stems
        self.sample_rate = self.metadata.sample_rate
        self.channels = self.metadata.channels
        self.segment_samples = self.metadata.segment_samples
        self.margin_samples = self.metadata.margin_samples
        self._config = self._read_config()
        self._outputs = [f"masks_{i}" for i in range(len(self._config.bands))]
        self._check_shapes()

    def __call__(
        self, segments: NDArray[np.float32], *, stem_matrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See Backend."""
        try:
            spectrum = stft(segments, n_fft=self._config.n_fft, hop=self._config.hop)
            masks = self._run_network(band_features(spectrum, self._config))
            return apply_masks(masks, spectrum, segments, self._config, stem_matrix)
        except Exception as error:  # as in __init__
            if "alloc" in str(error).lower() or isinstance(error, MemoryError):
                raise DeviceError("out of memory while separating: close other programs") from None
            raise ModelError(
                f"{self._path} cannot be run ({_first_line(error)}): download it again"
            ) from None

    def _run_network(self, bands: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        masks: list[NDArray[np.float32]] = self._session.run(
            self._outputs, {f"features_{i}": band for i, band in enumerate(bands)}
        )
        return masks

    def _read_config(self) -> ModelConfig:
        try:
            config = ModelConfig.from_json(self.metadata.config)
        except ValueError as error:
            raise ModelError(f"{self._path} is damaged: {error}") from None
        if contradicts(self.metadata, config):
            raise ModelError(f"{self._path} is damaged: its metadata contradicts itself")
        return config

    def _check_shapes(self) -> None:
        """Raise ModelError if the graph's inputs and outputs contradict its metadata.

        A symbolic size, such as "batch", fits any.
        """
        config, t = self._config, self.segment_samples // self.metadata.hop + 1
        inputs = [(None, config.feature_count(band), band.stop - band.start, t) for band in config.bands]
        outputs = [
            (None, len(self.stems) * config.head_parts(band) * band.stride, band.tokens, t)
            for band in config.bands
        ]
        for kind, arguments, shapes in (
            ("features", self._session.get_inputs(), inputs),
            ("masks", self._session.get_outputs(), outputs),
        ):
            expected = {f"{kind}_{i}": shape for i, shape in enumerate(shapes)}
            actual = {argument.name: tuple(argument.shape) for argument in arguments}
            fits = actual.keys() == expected.keys() and all(
                len(actual[name]) == len(shape)
                and all(
                    size == expected_size or not isinstance(size, int) or expected_size is None
                    for size, expected_size in zip(actual[name], shape, strict=True)
                )
                for name, shape in expected.items()
            )
            if not fits or any(argument.type != "tensor(float)" for argument in arguments):
                raise ModelError(
                    f"{self._path} does not match its own metadata: expected {expected}, got {actual}"
                )


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


def _open_session(path: Path, options: onnxruntime.SessionOptions, providers: list[Any]) -> Any:
    """A session with the first provider that starts."""
    try:  # ONNX Runtime's own fallback prints to stdout
        return onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception:
        if len(providers) == 1:
            raise
    return onnxruntime.InferenceSession(str(path), options, providers=providers[-1:])


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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
