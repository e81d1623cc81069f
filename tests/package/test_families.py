"""Models of other makers, with small networks of random weights, against the same computation on the whole song."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_song
from numpy.typing import NDArray

from tfswa_sep import Separator, load_model
from tfswa_sep.errors import ModelError, UsageError
from tfswa_sep.inference.ensemble import Ensemble
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.inference.stem_matrix import row_like
from tfswa_sep.inference.stft_numpy import istft, stft
from tfswa_sep.registry import ModelInfo, find_model

onnx = pytest.importorskip("onnx")

Noise = Callable[..., NDArray[np.float32]]
FOUR = ("vocals", "drums", "bass", "other")
SIX = (*FOUR, "guitar", "piano")
STATM = Path("/proc/self/statm")
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
    batch = 1 if properties["batch_mode"] == "static" else "batch"
    for part in ("real", "imag"):
        nodes += [
            ("Unsqueeze", [f"spec_{part}", "axis"], [f"each_{part}"]),
            ("Mul", [f"each_{part}", "gains"], [f"out_spec_{part}"]),
        ]
        inputs[f"spec_{part}"] = (batch, 2, f, t)
        outputs[f"out_spec_{part}"] = (batch, s, 2, f, t)
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
        ({"external_normalization": "true"}, "needs songs that are normalized as a whole"),
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


MDX_BINS, MDX_FRAMES = 100, 17
MDX_SETTINGS = "n_fft=256 hop=64 stems=instrumental,vocals gain=1.25"


def mdx_model(path: Path) -> tuple[Path, NDArray[np.float32]]:
    """A network that multiplies its input by gains (4, f, t), one segment per call, without metadata."""
    shape = (4, MDX_BINS, MDX_FRAMES)
    gains = np.random.default_rng(2).uniform(0, 1, shape).astype(np.float32)
    write_graph(
        path,
        [("Mul", ["input", "gains"], ["output"])],
        {"input": (1, *shape)},
        {"output": (1, *shape)},
        {"gains": gains},
        {},
    )
    return path, gains


def mdx_whole_song(song: NDArray[np.float32], gains: NDArray[np.float32]) -> NDArray[np.float32]:
    """What mdx_model gives, with torch's transforms, and the segments and windows of audio-separator."""
    import torch

    options: dict[str, Any] = {"n_fft": 256, "hop_length": 64, "window": torch.hann_window(256)}
    chunk, trim, n = 64 * (MDX_FRAMES - 1), 128, song.shape[1]
    mixture = np.pad(song, ((0, 0), (trim, 2 * chunk)))
    result, divider = np.zeros_like(mixture), np.zeros(mixture.shape[1])
    for start in range(0, trim + n, int(0.75 * chunk)):
        spectrum = torch.stft(
            torch.from_numpy(mixture[:, start : start + chunk]), return_complex=True, **options
        )
        spectrum = torch.view_as_real(spectrum).permute(0, 3, 1, 2).reshape(4, 129, MDX_FRAMES)
        spectrum[:, :3] = 0
        estimate = torch.zeros(4, 129, MDX_FRAMES)
        estimate[:, :MDX_BINS] = spectrum[:, :MDX_BINS] * torch.from_numpy(gains)
        parts = estimate.reshape(2, 2, 129, MDX_FRAMES).permute(0, 2, 3, 1).contiguous()
        wave = torch.istft(torch.view_as_complex(parts), **options).numpy()
        window = np.hanning(chunk)
        result[:, start : start + chunk] += wave * window
        divider[start : start + chunk] += window
    first = (result / np.maximum(divider, 1e-9))[:, trim : trim + n]
    return np.stack([first, song - 1.25 * first]).astype(np.float32)


@pytest.mark.parametrize("samples", (700, 5_000))
def test_mdx_net_equals_audio_separators(tmp_path: Path, noise: Noise, samples: int) -> None:
    pytest.importorskip("torch")
    song = noise(2, samples)
    path, gains = mdx_model(tmp_path / "m.onnx")
    separator = Separator(path, batch_size=2, model_settings=MDX_SETTINGS)
    expected = mdx_whole_song(song, gains)
    stems = separator.separate(song, 44_100)
    assert list(stems) == ["instrumental", "vocals"]
    np.testing.assert_allclose(np.stack(list(stems.values())), expected, atol=3e-5)
    (vocals,) = separator.separate(song, 44_100, stems="vocals").values()
    np.testing.assert_allclose(vocals, expected[1], atol=3e-5)


def waveform_model(path: Path, gains: list[float], *, output: str = "stems", copies: int = 1) -> Path:
    """A network that multiplies segments by gains (s,) and by the peak of copies of them, one segment per call."""
    s = len(gains)
    return write_graph(
        path,
        [
            ("Abs", ["mix"], ["magnitudes"]),
            ("Tile", ["magnitudes", "copies"], ["many"]),
            ("ReduceMax", ["many"], ["peak"]),
            ("Mul", ["mix", "peak"], ["scaled"]),
            ("Unsqueeze", ["scaled", "axis"], ["each"]),
            ("Mul", ["each", "gains"], [output]),
        ],
        {"mix": (1, 2, 4_000)},
        {output: (1, s, 2, 4_000)},
        {
            "axis": np.array([1]),
            "copies": np.array([1, copies, 1]),
            "gains": np.array(gains, np.float32).reshape(s, 1, 1),
        },
        {},
    )


def waveforms_in_segments(song: NDArray[np.float32], gains: list[float]) -> NDArray[np.float32]:
    """What waveform_model gives, with the segments and fades of demucs."""
    n = song.shape[1]
    total, weight = np.zeros((len(gains), 2, n)), np.zeros(n)
    triangle = np.minimum(np.arange(1, 4_001), np.arange(4_000, 0, -1))
    for start in range(0, n, 3_000):
        count = min(4_000, n - start)
        before = (4_000 - count) // 2
        peak = np.abs(song[:, max(0, start - before) : start - before + 4_000]).max()
        part = np.array(gains)[:, None, None] * song[:, start : start + count] * peak
        total[..., start : start + count] += part * triangle[:count]
        weight[start : start + count] += triangle[:count]
    return np.asarray(total / weight, np.float32)


@pytest.mark.parametrize("samples", (700, 7_500))
def test_waveforms_equal_those_of_demucs(tmp_path: Path, noise: Noise, samples: int) -> None:
    song = noise(2, samples) * np.linspace(0.1, 1, samples, dtype=np.float32)
    gains = [0.1, 0.2, 0.3, 0.4]
    expected = waveforms_in_segments(song, gains)
    stems = Separator(waveform_model(tmp_path / "m.onnx", gains), batch_size=3).separate(song, 44_100)
    assert list(stems) == ["drums", "bass", "other", "vocals"]
    np.testing.assert_allclose(np.stack(list(stems.values())), expected, atol=1e-5)
    path = waveform_model(tmp_path / "n.onnx", gains[:2], output="out")
    separator = Separator(path, model_settings="stems=vocals,rest sample_rate=48000")
    assert (separator.stems, separator.backend.sample_rate) == (("vocals", "rest"), 48_000)
    (both,) = separator.separate(song, 48_000, stems="vocals+rest").values()
    np.testing.assert_allclose(both, expected[:2].sum(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    (
        ("", r"does not specify n?_?[a-z]+: set it with --model-settings, such as"),
        ("nfft=256 stems=a,b", "has no setting 'nfft': choose from gain, hop, n_fft"),
        ("n_fft=128 hop=64 stems=a,b", "at n_fft"),
        ("n_fft=256 hop=0 stems=a,b", "at hop"),
        ("n_fft=256 hop=64 stems=a", "at stems"),
        ("n_fft=256 hop=64 stems=a,../b", "at stems"),
        ("n_fft=256 hop=64 stems=a,b gain=loud", "at gain"),
        ("n_fft=256 hop=64 stems=a,b gain=nan", "at gain"),
        ("n_fft=256 hop=64 stems=a,b sample_rate=1", "at sample_rate"),
    ),
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: str, says: str) -> None:
    path, _ = mdx_model(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"m\.onnx .*{says}") as caught:
        _ = Separator(path, model_settings=settings).backend
    assert "\n" not in str(caught.value)


def test_settings_are_pairs() -> None:
    with pytest.raises(UsageError, match="invalid model setting 'n_fft=': expected KEY=VALUE"):
        Separator(model_settings="n_fft= 256")


def bag_of_two(folder: Path, first: list[float], second: list[float], *, copies: int = 1) -> ModelInfo:
    """Two networks of waveforms, the first for drums and bass, the second for the rest and half of the bass."""
    weights = ((1.0, 1.0, 0.0, 0.0), (0.0, 1.0, 1.0, 1.0))
    files = [
        replace(
            find_model(waveform_model(folder / f"{i}.onnx", gains, copies=copies)).files[0],
            weights=weights[i],
        )
        for i, gains in enumerate((first, second))
    ]
    return replace(find_model(folder / "0.onnx"), name="bag", files=tuple(files))


def test_a_bag_is_the_weighted_mean_of_its_networks(tmp_path: Path, noise: Noise) -> None:
    song = noise(2, 7_500)
    first, second = [0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]
    separator = Separator(bag_of_two(tmp_path, first, second))
    expected = waveforms_in_segments(song, [0.1, 0.4, 0.7, 0.8])
    stems = separator.separate(song, 44_100)
    np.testing.assert_allclose(np.stack(list(stems.values())), expected, atol=1e-5)
    (accompaniment,) = separator.separate(song, 44_100, stems="accompaniment").values()
    np.testing.assert_allclose(accompaniment, expected[:3].sum(axis=0), atol=1e-5)


def test_only_the_needed_networks_of_a_bag_are_loaded(tmp_path: Path, noise: Noise) -> None:
    info = bag_of_two(tmp_path, [0.1] * 4, [0.2] * 4)
    (tmp_path / "1.onnx").write_bytes(b"\x08 damaged")
    separator = Separator(info)
    assert separator.separate(noise(2, 100), 44_100, stems="drums")["drums"].any()
    with pytest.raises(ModelError, match=r"1\.onnx is damaged"):
        separator.separate(noise(2, 100), 44_100, stems="bass")


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux's count of resident pages")
def test_the_networks_of_a_bag_keep_no_memory(tmp_path: Path, noise: Noise) -> None:
    separator = Separator(bag_of_two(tmp_path, [0.1] * 4, [0.2] * 4, copies=2_000))  # 64 MB in each network
    before = int(STATM.read_text().split()[1])
    separator.separate(noise(2, 4_000), 44_100)
    grown = (int(STATM.read_text().split()[1]) - before) * mmap.PAGESIZE
    assert grown < 40_000_000


def test_files_that_differ_are_no_bag(tmp_path: Path, noise: Noise) -> None:
    info = bag_of_two(tmp_path, [0.1] * 4, [0.2] * 4)
    waveform_model(tmp_path / "1.onnx", [0.2] * 6)
    with pytest.raises(ModelError, match="do not fit together"):
        Separator(info).separate(noise(2, 100), 44_100)


def test_an_ensemble_is_the_mean_of_stems_of_the_same_name(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models cut the song in different ways: segments of 4,000 and of 1,216 samples."""
    monkeypatch.chdir(tmp_path)
    waveform_model(tmp_path / "four.onnx", [0.1, 0.2, 0.3, 0.4])
    magnitude_model(tmp_path / "two.onnx")
    song = noise(2, 9_000)
    four, two, both = (
        Separator(path).separate(song, 44_100, stems=stems)
        for path, stems in (
            ("four.onnx", "vocals,drums,accompaniment"),
            ("two.onnx", "vocals,accompaniment"),
            ("four.onnx+two.onnx", "vocals,drums,accompaniment"),
        )
    )
    for stem in ("vocals", "accompaniment"):
        np.testing.assert_allclose(both[stem], (four[stem] + two[stem]) / 2, atol=1e-6)
    np.testing.assert_array_equal(both["drums"], four["drums"])
    assert Separator("four.onnx+two.onnx").stems == ("drums", "bass", "other", "vocals")
    shifted = Separator("two.onnx+four.onnx", shifts=2)
    assert shifted.stems == ("vocals", "accompaniment")
    parts = shifted.stream([song[:, :5_000], song[:, 5_000:]], 44_100)
    assert sum(part.samples for part in parts) == 9_000
    result = shifted.separate_file(write_song(tmp_path / "song.wav"), exact_sum=True)
    assert (result.model, result.backend) == ("two+four", "onnx")
    with pytest.raises(UsageError, match="no single network"):
        load_model("four.onnx+two.onnx")
    (tmp_path / "a+b.onnx").write_bytes((tmp_path / "four.onnx").read_bytes())
    assert find_model("a+b.onnx").name == "a+b"
    waveform_model(tmp_path / "other.onnx", [0.1] * 4)
    other = Separator("four.onnx+other.onnx", model_settings="sample_rate=48000")
    assert other.backend.sample_rate == 48_000


@pytest.mark.parametrize(
    ("name", "available", "others", "expected"),
    (
        ("vocals", FOUR, SIX, {"vocals": 1}),
        ("other", FOUR, SIX, {"other": 1, "guitar": 1, "piano": 1}),
        ("drums+other", FOUR, SIX, {"drums": 1, "other": 1, "guitar": 1, "piano": 1}),
        ("other", SIX, FOUR, None),
        ("guitar", SIX, FOUR, None),
        ("guitar+piano+other", SIX, FOUR, {"other": 1}),
        ("accompaniment", SIX, FOUR, {"drums": 1, "bass": 1, "other": 1}),
        ("no_drums", SIX, FOUR, {"bass": 1, "other": 1, "vocals": 1}),
        ("accompaniment", FOUR, ("vocals",), {"vocals": -1, "song": 1}),
        ("drums", FOUR, ("vocals", "accompaniment"), None),
        ("drums+bass+other", FOUR, ("vocals", "accompaniment"), {"accompaniment": 1}),
    ),
)
def test_stems_of_the_same_sound_are_found(
    name: str, available: tuple[str, ...], others: tuple[str, ...], expected: dict[str, float] | None
) -> None:
    row = row_like(name, available, others)
    if row is not None:
        row_by_name = dict(zip((*others, "song"), row.tolist(), strict=True))
        assert {stem: weight for stem, weight in row_by_name.items() if weight} == expected
    assert (row is None) == (expected is None)


def test_models_of_different_rates_are_no_ensemble(tmp_path: Path) -> None:
    paths = (waveform_model(tmp_path / "a.onnx", [0.1] * 4), magnitude_model(tmp_path / "b.onnx"))
    slow = Separator(paths[0], model_settings="sample_rate=32000").backend
    fast = Separator(paths[1]).backend
    assert not isinstance(slow, Ensemble) and not isinstance(fast, Ensemble)
    with pytest.raises(ModelError, match="cannot be combined: 32000 Hz and 44100 Hz"):
        Ensemble((slow, fast))
