"""Quantize an exported model to int8, as MODEL.int8.onnx next to it:

    python -m training.release.quantize tfswa_sep/weights/small.onnx --songs FOLDER --registry models.toml

Convolutions, linear layers, additions and what connects them run in int8, with QuantizeLinear and
DequantizeLinear around every layer (Jacob et al., arXiv:1712.05877): uint8 activations with ranges calibrated on
music, and int8 weights with one scale per channel. Weights use 7 bits, because CPUs without VNNI accumulate products
in 16 bits, which would overflow. Attention, softmax and transposed convolutions stay in float32, which is faster
(measured).

`--sweep FILE` quantizes one convolution at a time, then everything but the linear layers and everything but the
additions, and records accuracy and speed of each; `--keep NODE` leaves a node in float32; `--dynamic` needs no
calibration and quantizes matrix products only.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import soundfile
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from tfswa_sep.evaluation.multitrack import find_songs
from tfswa_sep.inference.metadata import KEY
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.model.config import ModelConfig
from training.release.export import save_graph, update_registry
from training.release.onnx_graph import compute_features

Feed = dict[str, NDArray[np.float32]]  # input name -> features of a segment

# Cheap operators between int8 layers are included, since converting to float32 and back takes longer.
OPERATORS = ("Conv", "Gemm", "Add", "Relu", "Concat", "Slice", "Transpose", "Reshape")
MIN_WEIGHTS = 1024  # layers with fewer weights keep them in float32


class Segments(CalibrationDataReader):  # type: ignore[misc]
    """Segments of music for ONNX Runtime's calibration."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """Return the next segment, or None after the last."""
        return next(self._feeds, None)


def draw_segments(model: Path, songs: Path, *, count: int, seed: int = 0) -> list[Feed]:
    """Draw random segments of a folder of songs, with random gains of up to 6 dB.

    Raises:
        InputError: There are no songs.
    """
    backend = OnnxBackend(model)
    random, tracks, length = np.random.default_rng(seed), find_songs(songs), backend.segment_samples
    feeds: list[Feed] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, song in enumerate(tracks[:count]):
            path = Path(folder) / "mixture.wav"
            frames = song.write_mixture(path, rate=backend.sample_rate)
            for _ in range(count // len(tracks) + (i < count % len(tracks))):
                start = int(random.integers(max(frames - length, 0) + 1))
                segment, _ = soundfile.read(path, length, start, dtype="float32", fill_value=0.0)
                feeds.append(_make_feed(backend, segment.T * np.float32(10 ** (random.uniform(-6, 6) / 20))))
    return feeds


def _make_feed(backend: OnnxBackend, segment: NDArray[np.float32]) -> Feed:
    bands = compute_features(segment[None], ModelConfig.from_json(backend.metadata.config))
    return {f"features_{i}": band.numpy() for i, band in enumerate(bands)}


def quantize(
    model: Path,
    out: Path,
    feeds: Sequence[Feed],
    *,
    operators: Sequence[str] = OPERATORS,
    keep: Sequence[str] = (),
) -> None:
    """Quantize a model statically.

    Args:
        model: ONNX file to quantize.
        out: ONNX file to write.
        feeds: Segments for the calibration.
        operators: Operators to quantize.
        keep: Names of nodes to keep in float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        named, quantized = Path(folder) / "named.onnx", Path(folder) / "quantized.onnx"
        # Adds the shapes. Optimization would fold constants, and so expand the biases of the attention windows.
        quant_pre_process(str(model), str(named), skip_optimization=True, skip_symbolic_shape=True)
        scores = find_attention_scores(onnx.load(named))
        quantize_static(
            str(named),
            str(quantized),
            Segments(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators),
            nodes_to_exclude=[*keep, *scores],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        graph = onnx.load(quantized)
    store_weights_as_int8(graph)
    _finish(graph, model, out)


def find_attention_scores(graph: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes between the query-key products and the softmax, including biases and masks.

    Masks are -1e4: with such a range, int8 could not resolve the scores.
    """
    producers = {name: node for node in graph.graph.node for name in node.output}
    pending = [node.input[0] for node in graph.graph.node if node.op_type == "Softmax"]
    names: dict[str, None] = {}
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.op_type in ("MatMul", "Gemm", "Conv") or node.name in names:
            continue
        names[node.name] = None
        pending += node.input
    return list(names)


def quantize_matrices(model: Path, out: Path) -> None:
    """Quantize matrix products dynamically, with ranges determined at run time."""
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            str(model),
            str(quantized),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        graph = onnx.load(quantized)
    _finish(graph, model, out)


def store_weights_as_int8(graph: onnx.ModelProto) -> None:
    """Store the weights of float32 layers as int8 with one scale per output channel."""
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    outputs = {"Gemm": 0, "MatMul": 1, "ConvTranspose": 1, "Conv": 0}  # axis of the output channels
    for node in list(graph.graph.node):
        tensor = weights.get(node.input[1]) if node.op_type in outputs else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < MIN_WEIGHTS:
            continue
        axis = outputs[node.op_type]
        if node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute):
            axis = 1
        values, name = numpy_helper.to_array(tensor), tensor.name
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(axis=others), 1e-12) / np.float32(127)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        rounded = np.rint(values / scale.reshape(shape)).astype(np.int8)
        graph.graph.initializer.remove(
            weights.pop(tensor.name)
        )  # also for other layers with the same weights
        graph.graph.initializer.extend(
            [
                numpy_helper.from_array(rounded, f"{name}_bytes"),
                numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
            ]
        )
        dequantize = helper.make_node(
            "DequantizeLinear", [f"{name}_bytes", f"{name}_scale"], [name], f"{name}_dequantized", axis=axis
        )
        graph.graph.node.insert(0, dequantize)


def _finish(graph: onnx.ModelProto, model: Path, out: Path) -> None:
    """Write a quantized graph with the metadata of the original model, and short names.

    There are thousands of names; long ones took a twentieth of the file.
    """
    public = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    short: dict[str, str] = {"": ""} | {name: name for name in public}
    for node in graph.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [short.setdefault(name, f"{len(short):x}") for name in names]
    for tensor in graph.graph.initializer:
        tensor.name = short.setdefault(tensor.name, f"{len(short):x}")
    del graph.graph.value_info[:]
    metadata = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    save_graph(graph, out, metadata[KEY])


def compare(model: Path, other: Path, feeds: Sequence[Feed], *, repeats: int = 5) -> dict[str, float]:
    """Compare a model with a quantized one: SNR of the masks in dB, and ratios of file size and CPU time.

    Both run on one thread, in turns; the median time counts.
    """
    sessions, options = [], onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for path in (model, other):
        sessions.append(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    power = error = 0.0
    for feed in feeds:
        for expected, masks in zip(*(session.run(None, feed) for session in sessions), strict=True):
            power += float(np.square(expected).sum())
            error += float(np.square(masks - expected).sum())
    spent: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        for session, times in zip(sessions, spent, strict=True):
            began = time.process_time()
            session.run(None, feeds[0])
            times.append(time.process_time() - began)
    return {
        "mask_snr_db": round(10 * math.log10(power / max(error, 1e-20)), 2),
        "times_smaller": round(model.stat().st_size / other.stat().st_size, 2),
        "times_faster": round(statistics.median(spent[0]) / statistics.median(spent[1]), 3),
    }


def sweep(model: Path, feeds: Sequence[Feed]) -> Iterator[dict[str, Any]]:
    """Yield `compare` of one quantized convolution at a time, then of all but one kind of operator."""
    nodes = [node.name for node in onnx.load(model).graph.node if node.op_type == "Conv"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "one.onnx"
        for name in nodes:
            others = [other for other in nodes if other != name]
            quantize(model, out, feeds[:2], operators=["Conv"], keep=others)
            yield {"node": name, **compare(model, out, feeds[2:4], repeats=3)}
        for kind in ("Gemm", "Add"):
            quantize(model, out, feeds[:2], operators=[other for other in OPERATORS if other != kind])
            yield {"without": kind, **compare(model, out, feeds[2:4], repeats=3)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help=".onnx file from training.release.export")
    parser.add_argument(
        "--songs", type=Path, required=True, help="folder of training songs with their stems, for calibration"
    )
    parser.add_argument("--out", type=Path, help="output file (default: MODEL.int8.onnx next to the model)")
    parser.add_argument(
        "--segments", type=int, default=20, help="number of segments for calibration (default: %(default)s)"
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NODE", help="leave this node in float32 (repeatable)"
    )
    parser.add_argument("--dynamic", action="store_true", help="quantize matrix products only, uncalibrated")
    parser.add_argument(
        "--sweep", type=Path, metavar="FILE", help="write accuracy and speed per node to this JSON file"
    )
    parser.add_argument("--registry", type=Path, help="models.toml in which to update sizes and hashes")
    options = parser.parse_args()
    out = options.out or options.model.with_suffix(".int8.onnx")
    feeds = draw_segments(options.model, options.songs, count=options.segments + 4)
    held_out, feeds = feeds[:4], feeds[4:]
    if options.dynamic:
        quantize_matrices(options.model, out)
    else:
        quantize(options.model, out, feeds, keep=options.keep)
    result = compare(options.model, out, held_out)
    print(f"{out}: {out.stat().st_size} bytes; compared with {options.model.name}: {result}")
    if options.sweep:
        rows = []
        for row in sweep(options.model, held_out):
            rows.append(row)
            print(row, flush=True)
        rows.sort(key=lambda row: row["mask_snr_db"])
        options.sweep.write_text(json.dumps(rows, indent=1) + "\n")
    if options.registry:
        update_registry(options.registry, name=options.model.stem, files={"onnx": out})


if __name__ == "__main__":
    main()
