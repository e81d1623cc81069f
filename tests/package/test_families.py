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


SPECTRA = {
    "model_family": "roformer",
    "sources": '["vocals", "other"]',
    "sample_rate": "44100",
    "audio_channels": "2",
    "segment_samples": "4000",
    "stft_n_fft": "256",
    "stft_hop_length": "100",
    "stft_win_length": "256",
    "stft_normalized": "true",
    "stft_window": "hann",
    "batch_mode": "dynamic",
    "output_complement": "false",
}
SCNET = {
    "model_family": "scnet",
    "stft_hop_length": "64",
    "stft_window": "none",
    "segment_samples": "4160",
    "logical_segment_samples": "4000",
    "batch_mode": "static",
}
HYBRID = {
    "model_family": "demucs",
    "stft_hop_length": "64",
    "stft_pad_samples": "96",
    "stft_frame_trim": "2",
}
COMPLEMENT = {"output_complement": "true"}


def spectra_model(path: Path, **changes: str) -> tuple[Path, NDArray[np.float32]]:
    """A network that multiplies the real and imaginary parts by gains (s, 1, f, t), and the audio by 0.25."""
    properties = SPECTRA | changes
    n_fft, hop, n = (int(properties[key]) for key in ("stft_n_fft", "stft_hop_length", "segment_samples"))
    hybrid = properties["model_family"] == "demucs"
    f, t = (n_fft // 2, -(-n // hop)) if hybrid else (n_fft // 2 + 1, n // hop + 1)
    s = 1 if properties["output_complement"] == "true" else 2
    gains = np.random.default_rng(1).uniform(0, 1, (s, 1, f, t)).astype(np.float32)
    nodes: list[tuple[str, list[str], list[str]]] = []
    inputs: dict[str, tuple[Any, ...]] = {}
    outputs: dict[str, tuple[Any, ...]] = {}
    for part in ("real", "imag"):
        nodes += [
            ("Unsqueeze", [f"spec_{part}", "axis"], [f"each_{part}"]),
            ("Mul", [f"each_{part}", "gains"], [f"out_spec_{part}"]),
        ]
        inputs[f"spec_{part}"] = ("batch", 2, f, t)
        outputs[f"out_spec_{part}"] = ("batch", s, 2, f, t)
    if hybrid:
        nodes += [("Unsqueeze", ["audio", "axis"], ["each"]), ("Mul", ["each", "quarter"], ["out_wave"])]
        inputs["audio"], outputs["out_wave"] = ("batch", 2, n), ("batch", s, 2, n)
    constants = {
        "axis": np.array([1]),
        "gains": gains,
        "quarter": np.full((s, 1, 1), 0.25, np.float32),
    }
    return write_graph(path, nodes, inputs, outputs, constants, properties), gains


def separate_in_torch(
    song: NDArray[np.float32], gains: NDArray[np.float32], **changes: str
) -> NDArray[np.float32]:
    """What spectra_model gives, with torch's transforms, and segments and fades as in demucs and unblend."""
    import torch

    properties = SPECTRA | changes
    n_fft, hop, padded = (
        int(properties[key]) for key in ("stft_n_fft", "stft_hop_length", "segment_samples")
    )
    segment = int(properties.get("logical_segment_samples", padded))
    window = torch.hann_window(n_fft) if properties["stft_window"] == "hann" else torch.ones(n_fft)
    options: dict[str, Any] = {"window": window, "normalized": True}
    pad = torch.nn.functional.pad

    def network(x: Any) -> Any:
        """(c, n) -> (s, c, n)"""
        if properties["model_family"] == "demucs":
            extended = -(-segment // hop) * hop
            y = pad(x, (96, 96 + extended - segment), mode="reflect")
            spectrum = torch.stft(y, n_fft, hop, return_complex=True, **options)[:, :-1, 2:-2]
            masked = pad(spectrum * torch.from_numpy(gains), (2, 2, 0, 1))
            waves = torch.istft(masked.flatten(0, 1), n_fft, hop, length=extended + 192, **options)
            return waves[:, 96 : 96 + segment].reshape(-1, 2, segment) + 0.25 * x
        spectrum = torch.stft(pad(x, (0, padded - segment)), n_fft, hop, return_complex=True, **options)
        masked = spectrum * torch.from_numpy(gains)
        waves = torch.istft(masked.flatten(0, 1), n_fft, hop, length=padded, **options)
        waves = waves[:, :segment].reshape(-1, 2, segment)
        return torch.cat([waves, x - waves]) if properties["output_complement"] == "true" else waves

    length = song.shape[1]
    total, weight = np.zeros((2, 2, length)), np.zeros(length)
    triangle = np.minimum(np.arange(1, segment + 1), np.arange(segment, 0, -1))
    for start in range(0, length, segment * 3 // 4):
        count = min(segment, length - start)
        before = (segment - count) // 2
        context = np.pad(song, ((0, 0), (segment, segment)))[
            :, start - before + segment : start - before + 2 * segment
        ]
        stems = network(torch.from_numpy(context)).numpy()[..., before : before + count]
        total[..., start : start + count] += stems * triangle[:count]
        weight[start : start + count] += triangle[:count]
    return np.asarray(total / weight, np.float32)


@pytest.mark.parametrize(
    "changes", (SPECTRA, COMPLEMENT, SCNET, HYBRID), ids=("", "complement", "scnet", "hybrid")
)
@pytest.mark.parametrize("samples", (700, 3_500, 7_500, 12_300))
def test_spectra_equal_torchs(tmp_path: Path, noise: Noise, samples: int, changes: dict[str, str]) -> None:
    pytest.importorskip("torch")
    song = noise(2, samples)
    path, gains = spectra_model(tmp_path / "m.onnx", **changes)
    separator = Separator(path, batch_size=2)
    stems = separator.separate(song, 44_100)
    expected = separate_in_torch(song, gains, **changes)
    assert list(stems) == ["vocals", "other"]
    np.testing.assert_allclose(np.stack(list(stems.values())), expected, atol=3e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    (both,) = separator.separate(song, 44_100, stems="vocals+other").values()
    np.testing.assert_allclose(both, expected.sum(axis=0), atol=3e-5)
    (other,) = separator.separate(song, 44_100, stems="other").values()
    np.testing.assert_allclose(other, expected[1], atol=3e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    (
        ({"sources": "[]"}, "at stems"),
        ({"sources": "["}, "metadata is invalid"),
        ({"sources": '["../a", "b"]'}, "at stems"),
        ({"audio_channels": "1"}, "at audio_channels"),
        ({"segment_samples": "99999999999"}, "at segment_samples"),
        ({"logical_segment_samples": "-1"}, "at logical_segment_samples"),
        ({"stft_hop_length": "200"}, "at hop"),
        ({"stft_win_length": "128"}, "at stft_win_length"),
        ({"stft_window": "kaiser"}, "at stft_window"),
        ({"stft_normalized": "1"}, "at stft_normalized"),
        ({"stft_n_fft": "4096", "stft_win_length": "4096"}, "at stft_n_fft"),
        ({"sources": '["vocals"]', "output_complement": "true"}, "at sources"),
        ({"sources": '["vocals", "drums", "other"]'}, "expected outputs"),
        ({"model_family": "mamba"}, "is not a tfswa-sep model"),
    ),
)
def test_spectra_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, str], says: str) -> None:
    path, _ = spectra_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, SPECTRA | change)
    onnx.save(model, path)
    with pytest.raises(ModelError, match=rf"m\.onnx .*{says}") as caught:
        OnnxBackend(path)
    assert "\n" not in str(caught.value)
