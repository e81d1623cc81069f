"""Models in 8 bits: still the same network, much smaller, and still of one piece with its metadata."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from tiny_model import TINY

from tfswa_sep.inference.onnx_backend import OnnxBackend
from training.release import export, quantize

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "tfswa_sep/weights"


@pytest.fixture(scope="module")
def model(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and a folder of songs next to it."""
    folder = tmp_path_factory.mktemp("quantize")
    path = Path(shutil.copy(exported / "tiny.onnx", folder))
    song = folder / "songs" / "song"
    song.mkdir(parents=True)
    samples = export._pink_noise(2, 3 * 44_100).numpy()
    for i, stem in enumerate(("vocals", "drums")):
        soundfile.write(song / f"{stem}.wav", np.roll(samples, 1000 * i, axis=1).T, 44_100)
    return path


@pytest.mark.slow
def test_a_quantized_model_is_accurate(model: Path) -> None:
    feeds = quantize.draw_segments(model, model.parent / "songs", count=6)
    assert len(feeds) == 6 and feeds[0]["features_0"].shape == (1, 8, 128, 32)
    assert not np.array_equal(feeds[0]["features_0"], feeds[1]["features_0"])
    out = model.with_suffix(".int8.onnx")
    quantize.quantize(model, out, feeds[:4])
    result = quantize.compare(model, out, feeds[4:], repeats=1)
    assert result["mask_snr_db"] > 25
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count("QuantizeLinear") > 5 and "DequantizeLinear" in kinds
    assert OnnxBackend(out).metadata == OnnxBackend(model).metadata
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 2, TINY.segment_samples)).astype(np.float32)
    expected, stems = OnnxBackend(model)(noise), OnnxBackend(out)(noise)
    assert np.square(stems - expected).sum() < 10**-2 * np.square(expected).sum()
    np.testing.assert_allclose(stems.sum(axis=1), noise, atol=1e-5)  # stems still add up to the song


@pytest.mark.slow
def test_attention_scores_stay_in_float32(model: Path) -> None:
    """With masks of -1e4, int8 could not resolve them."""
    feeds, out = (
        quantize.draw_segments(model, model.parent / "songs", count=2),
        model.with_suffix(".scores.onnx"),
    )
    quantize.quantize(model, out, feeds)
    graph = onnx.load(out).graph
    producers = {name: node for node in graph.node for name in node.output}
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        node = producers[softmax.input[0]]
        while node.op_type in ("Add", "Reshape"):
            node = producers[node.input[0]]
        assert node.op_type in ("MatMul", "Gemm", "DequantizeLinear")
        if node.op_type == "DequantizeLinear":  # weights of the fusion, which are not masked
            scale = next(t for t in graph.initializer if t.name == node.input[1])
            assert onnx.numpy_helper.to_array(scale).max() < 0.1
    bundled = onnx.load(WEIGHTS / "small.int8.onnx").graph
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in bundled.initializer}
    steps = [scales[node.input[1]].max() for node in bundled.node if node.op_type == "QuantizeLinear"]
    assert max(steps) < 1  # a mask in int8 would have a step of 39


@pytest.mark.slow
def test_dynamic_quantization(model: Path) -> None:
    out = model.with_suffix(".dynamic.onnx")
    quantize.quantize_matrices(model, out)
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert "MatMulInteger" in kinds or "DynamicQuantizeMatMul" in kinds
    assert "QLinearConv" not in kinds and "Conv" in kinds
    feeds = quantize.draw_segments(model, model.parent / "songs", count=2)
    result = quantize.compare(model, out, feeds, repeats=1)
    assert result["mask_snr_db"] > 25 and result["times_smaller"] > 1
    assert OnnxBackend(out).metadata == OnnxBackend(model).metadata


def test_the_bundled_int8_model_is_accurate() -> None:
    song, _ = soundfile.read(ROOT / "examples/demo/demo.ogg", dtype="float32", frames=196_096, start=441_000)
    wide, narrow = (
        OnnxBackend(WEIGHTS / name, threads=1)(song.T[None]) for name in ("small.onnx", "small.int8.onnx")
    )
    error = np.square(narrow - wide).sum(axis=(0, 2, 3))
    assert (error < 10**-2 * np.square(wide).sum()).all()  # for each stem, 20 dB below the song
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 40e6


@pytest.mark.slow
def test_a_sweep_quantizes_each_convolution(model: Path) -> None:
    feeds = quantize.draw_segments(model, model.parent / "songs", count=4)
    rows = list(quantize.sweep(model, feeds))
    nodes = [node.name for node in onnx.load(model).graph.node if node.op_type == "Conv"]
    assert [row["node"] for row in rows[:-2]] == nodes
    assert [row["without"] for row in rows[-2:]] == ["Gemm", "Add"]
    everything = model.with_suffix(".all.onnx")
    quantize.quantize(model, everything, feeds[:2])
    together = quantize.compare(model, everything, feeds[2:], repeats=1)["mask_snr_db"]
    assert min(row["mask_snr_db"] for row in rows) >= together - 3  # one costs no more than all
    assert rows[-1]["mask_snr_db"] != rows[-2]["mask_snr_db"] != together
    kept = model.with_suffix(".kept.onnx")
    every = [node.name for node in onnx.load(model).graph.node]
    quantize.quantize(model, kept, feeds[:2], keep=every)
    assert quantize.compare(model, kept, feeds[2:], repeats=1)["mask_snr_db"] > together
    assert "QuantizeLinear" not in [node.op_type for node in onnx.load(kept).graph.node]


@pytest.mark.slow
def test_int8_weights_are_rounded_weights(model: Path) -> None:
    graph = onnx.load(model)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    quantize.store_weights_as_int8(graph)
    after = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    stored = [name.removesuffix("_bytes") for name in after if name.endswith("_bytes")]
    assert stored and not set(stored) & set(after)
    axes = {
        node.output[0]: node.attribute[0].i for node in graph.graph.node if node.name.endswith("_dequantized")
    }
    for name in stored:
        shape = [-1 if i == axes[name] else 1 for i in range(before[name].ndim)]
        scale = after[f"{name}_scale"].reshape(shape)
        np.testing.assert_allclose(after[f"{name}_bytes"] * scale, before[name], atol=0.51 * scale.max())
        assert np.abs(after[f"{name}_bytes"]).max() == 127
