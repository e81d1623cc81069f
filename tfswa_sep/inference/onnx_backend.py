"""The light backend: ONNX Runtime, with the STFT and the masks outside the graph, in NumPy, on the CPU.

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples, f bins, t frames.
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

_NAMES = {"cuda": "CUDA", "coreml": "Core ML"}  # of devices other than the CPU
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"  # which provider computes which node
_FATAL_ONLY = 4  # ONNX Runtime's log severity: its errors come as exceptions, nothing belongs on stderr


class OnnxBackend:
    """A model in an ONNX file; see backend.Backend.

    The graph maps features_0, ... (b, features, bins of the band, t), an input a band, to masks_0, ...
    (b, s * parts * bins of a token, tokens, t), float32; the segment length gives t. See features.py and mask_apply.py.

    Each of `workers` segments at once gets its share of the threads: a segment on one core of its own took
    less than one after the other on two (0.27 s a segment against 0.36 s, measured).
    device: "auto", "cpu", "cuda", "cuda:N" or "coreml", which run the network; "auto" takes CUDA if it works.
    precision: of the file's numbers, as far as it is on record.
    notes: what the user should know of how it came to be chosen, one line each.
    Raises ModelError if the file is damaged or no model of tfswa-sep, DeviceError if the device is not there.
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
        providers = _providers(device)
        options = onnxruntime.SessionOptions()
        threads = threads or count_cores()
        self.workers = choose_workers(threads)
        options.intra_op_num_threads = threads // self.workers
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Threads that wait sleep: spinning took a tenth more CPU time on a busy machine (measured).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Planned memory was held twice by segments computed at once, and brought no speed (measured).
        options.enable_mem_pattern = False
        options.log_severity_level = _FATAL_ONLY
        if _is_named(device):
            options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
        try:
            self._session = _open(path, options, providers)
            text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        except Exception as error:  # ONNX Runtime has no common base for its errors
            raise ModelError(
                f"{path} is damaged or not an ONNX model ({_first_line(error)}): download it again"
            ) from None
        self.device = _device_of(self._session, wanted=device)
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
        """Separate (b, c, n) into (b, s, c, n), or into (b, k, c, n) with a (k, s) matrix; see Backend."""
        try:
            spectrum = stft(segments, n_fft=self._config.n_fft, hop=self._config.hop)
            masks = self._run(band_features(spectrum, self._config))
            return apply_masks(masks, spectrum, segments, self._config, stem_matrix)
        except Exception as error:  # as above
            if "alloc" in str(error).lower() or isinstance(error, MemoryError):
                raise DeviceError("out of memory while separating: close other programs") from None
            raise ModelError(
                f"{self._path} cannot be run ({_first_line(error)}): download it again"
            ) from None

    def _run(self, bands: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
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
        """Compare the graph with its metadata; a name or size that is not fixed ("batch") fits anything."""
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
            found = {argument.name: tuple(argument.shape) for argument in arguments}
            fits = found.keys() == expected.keys() and all(
                len(found[name]) == len(shape)
                and all(
                    have == want or not isinstance(have, int) or want is None
                    for have, want in zip(found[name], shape, strict=True)
                )
                for name, shape in expected.items()
            )
            if not fits or any(argument.type != "tensor(float)" for argument in arguments):
                raise ModelError(
                    f"{self._path} does not match its own metadata: expected {expected}, got {found}"
                )


def _providers(device: str) -> list[Any]:
    """What ONNX Runtime is to run the graph with, best first. Raises DeviceError if it was built without."""
    kind, _, number = device.partition(":")
    built_with = onnxruntime.get_available_providers()
    providers: list[Any] = []
    if kind == "cuda" or (kind == "auto" and "CUDAExecutionProvider" in built_with):
        providers.append(("CUDAExecutionProvider", {"device_id": int(number or 0)}))
    elif kind == "coreml":
        providers.append(("CoreMLExecutionProvider", {}))
    if providers and providers[0][0] not in built_with:
        replace = f", or replace it: {install_command('onnxruntime-gpu')}" if kind == "cuda" else ""
        raise DeviceError(f"this onnxruntime was built without {_NAMES[kind]}: use --device cpu{replace}")
    if providers and kind != "coreml" and hasattr(onnxruntime, "preload_dlls"):
        # CUDA's libraries as pip installs them: ONNX Runtime finds them only so. It prints what is missing.
        with redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    return [*providers, "CPUExecutionProvider"]


def _open(path: Path, options: onnxruntime.SessionOptions, providers: list[Any]) -> Any:
    """A session with the first of the providers that starts."""
    try:  # its own fallback prints to stdout
        return onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception:
        if len(providers) == 1:
            raise
    return onnxruntime.InferenceSession(str(path), options, providers=providers[-1:])


def _is_named(device: str) -> bool:
    """Whether a device other than the CPU was asked for: then nothing else will do."""
    return device.partition(":")[0] in _NAMES


def _device_of(session: Any, *, wanted: str) -> str:
    """Where a session computes. Raises DeviceError if that is not what was asked for by name."""
    provider: str = session.get_providers()[0]
    if _is_named(wanted):  # ONNX Runtime falls back without a word
        name = _NAMES[wanted.partition(":")[0]]
        if provider == "CPUExecutionProvider":
            raise DeviceError(
                f"ONNX Runtime could not start {name} and fell back to the CPU: "
                "run tfswa-sep doctor, or use --device cpu"
            )
        if not _convolves(session, provider):
            raise DeviceError(
                f"{name} cannot run this model's convolutions: use --precision fp32 or --device cpu"
            )
    if provider == "CPUExecutionProvider":
        return "cpu"
    if provider == "CUDAExecutionProvider":
        return wanted if ":" in wanted else "cuda:0"
    return "coreml"


def _convolves(session: Any, provider: str) -> bool:
    """Whether a provider that has started got any convolution, or left all to the processor, without a word.

    True where this ONNX Runtime cannot tell.
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
