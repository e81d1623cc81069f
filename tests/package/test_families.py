"""Models of other makers, with small networks of random weights, against the same computation on the whole song."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa_sep import Separator
from tfswa_sep.errors import ModelError
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.inference.stft_numpy import istft, stft

onnx = pytest.importorskip("onnx")

Noise = Callable[..., NDArray[np.float32]]
FRAMES, BINS = 16, 40
WEIGHTS = np.random.default_rng(0).standard_normal((2, 1, FRAMES, BINS)).astype(np.float32)  # (s, c, t, f)
MAGNITUDE_MASKS: dict[str, Any] = {
    "format": 3,
    "family": "magnitudes to masks",
    "stems": ["vocals", "accompaniment"],
    "sample_rate": 44_100,
    "channels": 2,
    "n_fft": 256,
    "hop": 64,
    "frames": FRAMES,
    "bins": BINS,
}


def write_graph(
    path: Path,
    nodes: list[tuple[str, list[str], list[str]]],
    inputs: dict[str, tuple[Any, ...]],
    outputs: dict[str, tuple[Any, ...]],
    constants: dict[str, NDArray[Any]],
    properties: dict[str, str],
) -> Path:
    """An ONNX file with these nodes: operator, inputs, outputs."""
    helper = onnx.helper

    def values(shapes: dict[str, tuple[Any, ...]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]

    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "test",
        values(inputs),
        values(outputs),
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, properties)
    onnx.save(model, path)
    return path


def magnitude_model(path: Path, **changes: Any) -> Path:
    """Masks are sigmoids of magnitudes that a network weights by stem, frame and bin."""
    shape = (2, FRAMES, BINS)
    return write_graph(
        path,
        [
            ("Unsqueeze", ["magnitudes", "axis"], ["each"]),
            ("Mul", ["each", "weights"], ["weighted"]),
            ("Sigmoid", ["weighted"], ["masks"]),
        ],
        {"magnitudes": ("batch", *shape)},
        {"masks": ("batch", 2, *shape)},
        {"axis": np.array([1]), "weights": WEIGHTS},
        {"tfswa_sep": json.dumps(MAGNITUDE_MASKS | changes)},
    )


def mask_whole_song(song: NDArray[np.float32]) -> NDArray[np.float32]:
    """What magnitude_model gives, with one STFT of the whole song."""
    spectrum = stft(song, n_fft=256, hop=64)
    t = spectrum.shape[-1]
    magnitudes = np.abs(spectrum[:, :BINS]).swapaxes(1, 2)  # (c, t, f)
    weights = np.tile(WEIGHTS, (1, 1, -(-t // FRAMES), 1))[:, :, :t]
    masks = 1 / (1 + np.exp(-magnitudes * weights))
    masked = np.zeros((2, *spectrum.shape), np.complex64)
    masked[:, :, :BINS] = masks.swapaxes(2, 3) * spectrum[:, :BINS]
    return istft(masked, n_fft=256, hop=64, length=song.shape[1])


@pytest.mark.parametrize("samples", (1, 500, 896, 900, 1024, 10_000))
def test_magnitude_masks_equal_those_of_the_whole_song(tmp_path: Path, noise: Noise, samples: int) -> None:
    song = noise(2, samples)
    separator = Separator(magnitude_model(tmp_path / "m.onnx"))
    stems = separator.separate(song, 44_100)
    assert list(stems) == ["vocals", "accompaniment"]
    expected = mask_whole_song(np.pad(song, ((0, 0), (0, 256))))[..., :samples]
    # The last frames reach beyond the song, where the samples are zeros in both.
    np.testing.assert_allclose(np.stack(list(stems.values())), expected, atol=3e-5)
    assert samples < 500 or np.abs(expected[0] - expected[1]).max() > 0.01


def test_another_familys_model_runs_like_our_own(tmp_path: Path, noise: Noise, song: Any) -> None:
    path = magnitude_model(tmp_path / "m.onnx")
    samples = noise(2, 9_000)
    expected = mask_whole_song(np.pad(samples, ((0, 0), (0, 256))))[..., :9_000]
    separator = Separator(path, batch_size=3)
    (accompaniment,) = separator.separate(samples, 44_100, stems="accompaniment").values()
    np.testing.assert_allclose(accompaniment, expected[1], atol=3e-5)
    (both,) = separator.separate(samples, 44_100, stems="vocals+accompaniment").values()
    np.testing.assert_allclose(both, expected.sum(axis=0), atol=3e-5)
    parts = separator.stream([samples[:, :4_000], samples[:, 4_000:]], 44_100, stems="no_vocals")
    streamed = np.concatenate([part["no_vocals"] for part in parts], axis=1)
    np.testing.assert_allclose(streamed, expected[1], atol=3e-5)
    result = separator.separate_file(song("s.wav", samples), out=tmp_path / "stems")
    assert set(result.files) == {"vocals", "accompaniment"}
    shifted = Separator(path, shifts=2).separate(samples, 44_100)
    assert shifted["vocals"].shape == samples.shape


@pytest.mark.parametrize(
    ("change", "says"),
    (
        ({"family": "spectra to dreams"}, "only 2 is supported: update tfswa-sep"),
        ({"format": 4}, "only 3 is supported: update tfswa-sep"),
        ({"bins": 130}, "at bins"),
        ({"bins": 20}, r"expected inputs \{'magnitudes': \(None, 2, 16, 20\)\}"),
        ({"stems": ["vocals"]}, "expected outputs"),
        ({"hop": 100}, "at hop"),
        ({"frames": 3}, "at frames"),
        ({"frames": 1 << 19}, "at segment_samples"),
        ({"channels": 1}, "at channels"),
        ({"stems": ["../a", "b"]}, "at stems"),
    ),
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=rf"m\.onnx .*{says}") as caught:
        OnnxBackend(magnitude_model(tmp_path / "m.onnx", **change))
    assert "\n" not in str(caught.value)
