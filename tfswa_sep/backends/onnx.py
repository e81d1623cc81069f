"""The light backend: ONNX Runtime on the CPU, with the STFT outside the graph, in NumPy.

Axis letters: b batch, s stem of the model, k stem asked for, c channel, n samples, f bins, t frames.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tfswa_sep.backends.metadata import KEY, ModelMetadata, parse_metadata
from tfswa_sep.errors import DeviceError, ModelError
from tfswa_sep.spectrogram import istft_channels, stft, to_channels

_FATAL_ONLY = 4  # ONNX Runtime's log severity: its errors come as exceptions, nothing belongs on stderr


class OnnxBackend:
    """A model in an ONNX file; see backends.Backend.

    The graph maps "mixture" (b, 2c, f, t) to "stems" (b, s, 2c, f, t), float32; the segment length gives t.
    Raises ModelError if the file is damaged or no model of tfswa-sep.
    """

    name = "onnx"
    device = "cpu"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self._path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or count_cores()
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Threads that wait sleep: spinning took a tenth more CPU time on a busy machine (measured).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _FATAL_ONLY
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        except Exception as error:  # ONNX Runtime has no common base for its errors
            raise ModelError(
                f"{path} is damaged or no ONNX model ({_first_line(error)}): fetch it again"
            ) from None
        self.metadata: ModelMetadata = parse_metadata(text, file=str(path))
        self.stems = self.metadata.stems
        self.sample_rate = self.metadata.sample_rate
        self.channels = self.metadata.channels
        self.segment_samples = self.metadata.segment_samples
        self.margin_samples = self.metadata.margin_samples
        self._check_shapes()

    def __call__(
        self, segment: NDArray[np.float32], *, mix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Separate (b, c, n) into (b, s, c, n), or into (b, k, c, n) with a (k, s) mix; see Backend."""
        n_fft, hop = self.metadata.n_fft, self.metadata.hop
        mixture = to_channels(stft(segment, n_fft=n_fft, hop=hop))
        try:
            stems: NDArray[np.float32] = self._session.run(["stems"], {"mixture": mixture})[0]
        except Exception as error:  # as above
            if "alloc" in str(error).lower() or isinstance(error, MemoryError):
                raise DeviceError("memory ran out while separating: close other programs") from None
            raise ModelError(f"{self._path} cannot be run ({_first_line(error)}): fetch it again") from None
        if mix is not None:
            b, s, *rest = stems.shape
            stems = (mix @ stems.reshape(b, s, -1)).reshape(b, len(mix), *rest)
        return istft_channels(stems, n_fft=n_fft, hop=hop, length=segment.shape[-1])

    def _check_shapes(self) -> None:
        """Compare the graph with its metadata; a name or size that is not fixed ("batch") fits anything."""
        c, f = 2 * self.channels, self.metadata.n_fft // 2 + 1
        t = self.segment_samples // self.metadata.hop + 1
        nodes: list[tuple[Any, str, tuple[int | None, ...]]] = [
            (self._session.get_inputs(), "mixture", (None, c, f, t)),
            (self._session.get_outputs(), "stems", (None, len(self.stems), c, f, t)),
        ]
        for arguments, name, expected in nodes:
            found = [argument.name for argument in arguments]
            shape = arguments[0].shape if found == [name] else []
            fits = len(shape) == len(expected) and all(
                have == want or not isinstance(have, int) or want is None
                for have, want in zip(shape, expected, strict=True)
            )
            if not fits or arguments[0].type != "tensor(float)":
                raise ModelError(
                    f"{self._path} does not fit its own metadata: expected '{name}' of shape {expected}, "
                    f"found {', '.join(found)} of shape {tuple(shape)}"
                )


def count_cores() -> int:
    """Physical cores that this process may use; 0, ONNX Runtime's own choice, where that is unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    siblings = set()
    for processor in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        try:
            siblings.add(topology.read_text().strip())
        except OSError:
            siblings.add(str(processor))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # what a container is granted
        granted = max(1, int(quota) // int(period))
    except (OSError, ValueError):
        granted = len(siblings)
    return min(len(siblings), granted)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
