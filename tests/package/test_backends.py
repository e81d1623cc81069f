from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from tfswa_sep import Separator, load_model, registry, separator
from tfswa_sep.errors import DeviceError, ModelError, UsageError
from tfswa_sep.inference import backend as backends
from tfswa_sep.inference import hardware, stft_numpy
from tfswa_sep.inference.metadata import parse_metadata
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.options import Runtime

Noise = Callable[..., NDArray[np.float32]]
Build = Callable[..., Path]
SHARES = (0.5, 0.25, 0.125, 0.125)


def load(path: Path, *offered: str, precision: str = "", **choices: Any) -> Any:
    """Load `path`, which a model is said to have for each of the backends `offered`."""
    files = [
        registry.ModelFile(backend, str(path), "", 0, precision=precision) for backend in offered or ("onnx",)
    ]
    info = replace(registry.default_model(), name="shares", files=tuple(files))
    return Separator(info, **choices).backend


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_onnx_splits_the_mixture(onnx_model: Build, noise: Noise) -> None:
    backend = load(onnx_model())
    assert (backend.name, backend.device, backend.stems) == (
        "onnx",
        "cpu",
        ("vocals", "drums", "bass", "other"),
    )
    assert (backend.sample_rate, backend.channels) == (44_100, 2)
    assert (backend.segment_samples, backend.margin_samples) == (8192, 1024)
    segments = noise(6, 8192).reshape(3, 2, 8192)
    stems = backend(segments)
    assert stems.dtype == np.float32 and stems.shape == (3, 4, 2, 8192)
    for index, share in enumerate(SHARES):
        np.testing.assert_allclose(stems[:, index], segments * share, atol=1e-6)


def test_onnx_mixes_before_the_inverse_transform(
    onnx_model: Build, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OnnxBackend(onnx_model())
    inverted = []
    original = stft_numpy.add_frames

    def count(chunks: Any, shape: tuple[int, int, int], **options: Any) -> Any:
        inverted.append(shape[0])
        return original(chunks, shape, **options)

    monkeypatch.setattr("tfswa_sep.inference.mask_apply.add_frames", count)
    segments = noise(2, 8192).reshape(1, 2, 8192)
    mix = np.array([[0, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(backend(segments, stem_matrix=mix), segments[:, None] * 0.5, atol=1e-6)
    mix = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(backend(segments, stem_matrix=mix)[:, 0], segments * 0.125, atol=1e-6)
    assert inverted == [2, 4]  # channels


def test_onnx_may_be_called_from_threads(onnx_model: Build, noise: Noise) -> None:
    backend = OnnxBackend(onnx_model(), threads=1)
    segments = [noise(2, 8192).reshape(1, 2, 8192) * np.float32(scale) for scale in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        for segment, stems in zip(segments, pool.map(backend, segments), strict=True):
            np.testing.assert_allclose(stems[:, 0], segment * 0.5, atol=1e-5)


def test_onnx_loads_the_graph_that_it_optimized_before(
    onnx_model: Build, noise: Noise, tmp_path: Path
) -> None:
    path, cache = onnx_model(), tmp_path / "cache"
    segments = noise(2, 8192).reshape(1, 2, 8192)
    first = OnnxBackend(path, cache=cache)
    (kept,) = cache.iterdir()
    assert first._session._model_path == str(path)
    for content in (None, b"damaged"):
        if content:
            kept.write_bytes(content)
        again = OnnxBackend(path, cache=cache)
        assert again._session._model_path == str(path if content else kept)
        assert again.metadata == first.metadata
        np.testing.assert_array_equal(again(segments), first(segments))
    assert list(cache.iterdir()) == [kept] and kept.read_bytes() != b"damaged"
    os.utime(path, (1, 1))  # another state of the model's file
    assert OnnxBackend(path, cache=cache)._session._model_path == str(path)
    (tmp_path / "file").touch()
    np.testing.assert_array_equal(
        OnnxBackend(path, cache=tmp_path / "file")(segments), first(segments)
    )  # no folder


def test_damaged_files_are_refused(
    onnx_model: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = onnx_model().read_bytes()
    for content in (b"", b"no model", data[: len(data) // 2], b"\x08" + bytes(range(256)) * 40):
        (path := tmp_path / "broken.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"broken\.onnx is (damaged|no model)") as caught:
            OnnxBackend(path)
        one_line(caught)
    assert capfd.readouterr().err == ""


def test_models_of_others_are_refused(onnx_model: Build) -> None:
    with pytest.raises(ModelError, match="not a tfswa-sep model: it has no 'tfswa_sep' metadata") as caught:
        OnnxBackend(onnx_model(metadata=None))
    one_line(caught)


def test_graph_and_metadata_must_agree(onnx_model: Build) -> None:
    with pytest.raises(ModelError, match=r"expected .*'features_0': \(None, 8, 256, 65\)") as caught:
        OnnxBackend(onnx_model(frames=64))
    one_line(caught)
    for changes in ({"stems": ["vocals", "other"]}, {"hop": 64}, {"config": {"bands": 3}}):
        with pytest.raises(ModelError, match="is damaged"):
            OnnxBackend(onnx_model(**changes))


@pytest.mark.parametrize(
    "change",
    (
        {"stems": []},
        {"stems": ["vocals", "vocals"]},
        {"stems": ["../vocals"]},
        {"stems": ["a/b"]},
        {"stems": 5},
        {"stems": [["a"]]},
        {"channels": 6},
        {"channels": True},
        {"sample_rate": "44100"},
        {"sample_rate": 0},
        {"hop": 100},
        {"hop": 0},
        {"segment_samples": 10**12},
        {"segment_samples": 8192.0},
        {"margin_samples": 4096},
        {"margin_samples": -1},
        {"format": 1},
        {"format": None},
        {"config": [1]},
    ),
)
def test_wrong_metadata_is_refused(onnx_model: Build, change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"shares\.onnx") as caught:
        OnnxBackend(onnx_model(**change))
    one_line(caught)


@pytest.mark.parametrize("text", ("{", "[]", "null", "3", '"x"', "[" * 100_000, "{}"))
def test_metadata_that_is_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match=r"m\.onnx"):
        parse_metadata(text, file="m.onnx")


@pytest.mark.parametrize(("version", "advice"), [(1, "export the model again"), (99, "update tfswa-sep")])
def test_a_model_of_another_time_says_which_side_is_old(version: int, advice: str) -> None:
    with pytest.raises(ModelError, match=rf"m\.onnx has metadata format {version}, .*: .*{advice}"):
        parse_metadata(json.dumps({"format": version}), file="m.onnx")


def test_metadata_is_read(onnx_model: Build) -> None:
    import onnx

    text = onnx.load(onnx_model(config={"dims": [1, 2]})).metadata_props[0].value
    metadata = parse_metadata(text, file="m.onnx")
    assert metadata.config == {"dims": [1, 2]} and metadata.hop == 128 and metadata.license == "MIT"
    missing = {key: value for key, value in json.loads(text).items() if key != "hop"}
    with pytest.raises(ModelError, match="hop"):
        parse_metadata(json.dumps(missing), file="m.onnx")


def test_unknown_choices_are_usage_errors(onnx_model: Build) -> None:
    path = onnx_model()
    for options in ({"backend": "tensorflow"}, {"device": "tpu"}, {"threads": 0}):
        with pytest.raises(UsageError):
            load(path, **options)


def test_missing_file_for_a_backend_is_reported(onnx_model: Build) -> None:
    with pytest.raises(ModelError, match="'shares' has no file for the torch backend, only onnx"):
        load(onnx_model(), backend="torch")
    with pytest.raises(ModelError, match="'shares' has no file for the torch backend, only onnx int8"):
        load(onnx_model(), precision="int8", backend="torch")


@pytest.mark.parametrize("gone", ["torch", "safetensors", "einops"])  # torch alone may be there
def test_missing_package_is_reported_with_its_install_line(
    onnx_model: Build, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    found = SimpleNamespace(submodule_search_locations=[])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == gone else found)
    with pytest.raises(DeviceError, match=rf'needs the package {gone}: .*install "tfswa-sep\[torch\]"'):
        load(onnx_model(), "onnx", "torch", backend="torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="pip install onnxruntime"):
        load(onnx_model())


def test_onnx_takes_the_gpu_that_it_was_built_for(
    onnx_model: Build, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, built_with = onnx_model(), ["CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: built_with)
    for device, message in (
        ("cuda", "built without CUDA: use --device cpu, or replace it: .* install onnxruntime-gpu"),
        ("coreml", "built without Core ML: use --device cpu"),
    ):
        with pytest.raises(DeviceError, match=message):
            load(path, backend="onnx", device=device)
    with pytest.raises(DeviceError, match="the onnx backend cannot use mps: use --backend torch"):
        load(path, backend="onnx", device="mps")
    monkeypatch.setattr(backends, "_missing", lambda backend: None)  # torch may not be installed
    with pytest.raises(DeviceError, match="the torch backend cannot use coreml: use --backend onnx"):
        load(path, "onnx", "torch", backend="torch", device="coreml")
    built_with[:0] = ["CUDAExecutionProvider", "CoreMLExecutionProvider"]  # but no GPU is there
    for device, name in (("cuda", "CUDA"), ("cuda:1", "CUDA"), ("coreml", "Core ML")):
        with (
            pytest.warns(UserWarning, match="not in available provider names"),
            pytest.raises(DeviceError, match=f"could not start {name} and fell back to the CPU"),
        ):
            load(path, backend="onnx", device=device)
    with pytest.warns(UserWarning, match="not in available provider names"):
        backend = load(path, backend="onnx", device="auto")
    assert backend.device == "cpu"
    assert backend(noise(2, 8192)[None]).shape == (1, 4, 2, 8192)


def test_onnx_says_where_it_computes(onnx_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a session that says so, since there is no GPU here."""
    asked: list[Any] = []
    computed = "FusedConv"
    start = onnxruntime.InferenceSession

    def pretend(path: str, options: Any, *, providers: list[Any], **settings: Any) -> Any:
        asked.append(providers)
        session = start(path, options, providers=["CPUExecutionProvider"])
        names = [p if isinstance(p, str) else p[0] for p in providers]
        session.get_providers = lambda: names
        part = SimpleNamespace(ep_name=names[0], get_nodes=lambda: [SimpleNamespace(op_type=computed)])
        session.get_provider_graph_assignment_info = lambda: [part]
        return session

    monkeypatch.setattr("onnxruntime.InferenceSession", pretend)
    names = ["CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
    path = onnx_model()
    for device, found in (
        ("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("coreml", "coreml"), ("cpu", "cpu"),
    ):  # fmt: skip
        assert load(path, backend="onnx", device=device).device == found
    assert asked[2] == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    assert asked[4] == ["CPUExecutionProvider"]
    computed = "Reshape"  # it has started, and the processor does the work
    with pytest.raises(DeviceError, match="Core ML cannot run this model's convolutions: use --precision"):
        load(path, backend="onnx", device="coreml")
    assert load(path, backend="onnx", device="auto").device == "cuda:0"


def test_a_gpu_that_is_seen_and_cannot_compute_leaves_the_work_to_the_processor(
    onnx_model: Build, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TooOld:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise DeviceError("cuda cannot be used (no kernel image is available): use --device cpu")

    monkeypatch.setattr(backends, "_has_gpu", lambda: True)
    monkeypatch.setattr(backends, "_missing", lambda backend: None)
    monkeypatch.setitem(
        sys.modules, "tfswa_sep.inference.torch_backend", SimpleNamespace(TorchBackend=TooOld)
    )
    path = onnx_model()
    backend = load(path, "onnx", "torch")
    assert (backend.name, backend.device) == ("onnx", "cpu")
    assert backend.notes == ("cuda cannot be used (no kernel image is available), so the CPU was used",)
    for options in ({"backend": "torch"}, {"device": "cuda"}):
        with pytest.raises(DeviceError, match="cuda cannot be used"):
            load(path, "onnx", "torch", **options)
    with pytest.raises(DeviceError, match="cuda cannot be used"):
        load(path, "torch")


@pytest.mark.parametrize(
    ("offered", "device", "gpu", "expected"),
    (
        (("onnx", "torch"), "auto", True, "torch"),
        (("onnx", "torch"), "auto", False, "onnx"),
        (("onnx", "torch"), "cpu", True, "onnx"),
        (("onnx", "torch"), "cuda", False, "torch"),
        (("onnx", "torch"), "coreml", False, "onnx"),
        (("onnx",), "auto", True, "onnx"),
        (("torch",), "auto", False, "torch"),
    ),
)
def test_auto_takes_the_fastest(
    offered: tuple[str, ...], device: str, gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(backends, "_missing", lambda backend: None)
    assert backends.choose_backend(offered, Runtime(device=device)) == expected


@pytest.mark.parametrize(
    ("flags", "installed", "choices", "expected"),
    (
        ({"amx_bf16"}, True, {}, ("openvino", False)),
        ({"amx_bf16", "amx_int8"}, False, {}, ("onnx", True)),
        ({"avx512_vnni"}, True, {}, ("onnx", True)),
        ({"amx_bf16"}, True, {"precision": "fp32"}, ("onnx", False)),
        ({"amx_bf16", "amx_int8"}, True, {"backend": "onnx"}, ("onnx", True)),
        ({"avx512_vnni"}, True, {"backend": "openvino"}, ("openvino", False)),
        (set(), True, {"device": "npu"}, ("openvino", False)),
    ),
)
def test_auto_takes_openvino_where_it_is_faster(
    flags: set[str],
    installed: bool,
    choices: dict[str, Any],
    expected: tuple[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: installed or None if name == "openvino" else real(name)
    )
    runtime = Runtime(**choices)
    assert (backends.choose_backend(("onnx",), runtime), hardware.prefers_int8(runtime)) == expected


def test_openvino_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_missing", lambda backend: backend)
    with pytest.raises(DeviceError, match="the openvino backend needs the package openvino: "):
        _ = Separator(backend="openvino").backend


def test_choosing_onnx_imports_no_torch(onnx_model: Build) -> None:
    code = (
        "import sys; from tfswa_sep import Separator; Separator(sys.argv[1]).backend; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(onnx_model())], check=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_cores_are_counted() -> None:
    assert 0 <= hardware.count_cores() <= 4096


def asked_anew() -> bool:
    """A processor does not change while a program runs, but here it does."""
    hardware.cpu_flags.cache_clear()
    try:
        return hardware.faster_in_int8()
    finally:
        hardware.cpu_flags.cache_clear()


@pytest.mark.parametrize(
    ("instructions", "faster"),
    [
        ("flags\t\t: fpu sse2 avx2 fma", True),
        ("flags\t\t: fpu sse2 avx2 fma avx512f avx512bw", False),
        ("flags\t\t: fpu sse2 avx2 fma avx512f avx512_vnni", True),
        ("flags\t\t: fpu sse2 avx", False),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd", False),
        ("model name\t: avx2", False),
    ],
)
def test_bytes_are_taken_where_they_are_faster(
    instructions: str, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{instructions}\nbugs\t: none\n")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    assert asked_anew() is faster
    (tmp_path / "cpuinfo").unlink()
    assert not asked_anew()


@pytest.mark.parametrize(
    ("machine", "told", "faster"),
    [
        ("arm64", "hw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\n", True),
        ("x86_64", "hw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\n", False),  # Rosetta
        ("arm64", "hw.optional.arm.FEAT_DotProd: 0\n", False),
        ("x86_64", "hw.optional.avx2_0: 1\nhw.optional.avx512f: 0\n", True),
        ("x86_64", "hw.optional.avx2_0: 1\nhw.optional.avx512f: 1\n", False),
    ],
)
def test_macos_is_asked_about_its_processor(
    machine: str, told: str, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for its sysctl."""
    (tmp_path / "told").write_text(told)
    (tmp_path / "sysctl").write_text(f'#!/bin/sh\n[ "$*" = hw.optional ] && cat {tmp_path}/told\n')
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert asked_anew() is faster
    monkeypatch.setenv("PATH", "")
    assert not asked_anew()


def test_windows_is_asked_about_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its kernel32."""
    monkeypatch.setattr(sys, "platform", "win32")
    for present, faster in (({40}, True), ({40, 41}, False), ({43}, True), (set[int](), False)):
        kernel = SimpleNamespace(IsProcessorFeaturePresent=present.__contains__)
        monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
        assert asked_anew() is faster


def test_the_default_precision_is_the_fastest_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for faster, precision in ((True, "int8"), (False, "fp32")):
        monkeypatch.setattr(hardware, "faster_in_int8", lambda faster=faster: faster)
        assert Separator(device="cpu").backend.precision == precision
    monkeypatch.setattr(hardware, "faster_in_int8", lambda: True)
    assert Separator(device="cpu", precision="fp32").backend.precision == "fp32"
    # The ONNX Runtime for graphics cards computes no convolutions in 8 bits there.
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "onnxruntime" else None)
    assert [hardware.prefers_int8(Runtime(device=device)) for device in ("auto", "cpu", "cuda:1")] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("load", [Separator, load_model])
def test_unset_options_are_auto(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def fake(backend: str, path: Path, runtime: Any, **_: Any) -> object:
        seen.append(runtime.precision)
        return object()

    monkeypatch.setattr(separator, "load_backend", fake)
    found = load()
    if isinstance(found, Separator):
        _ = found.backend
    assert seen == ["auto"]


def test_the_bundled_networks_take_shorter_segments_and_return_their_end(noise: Noise) -> None:
    backend = load(Path(registry.__file__).parent.parent / "weights" / "small.int8.onnx", threads=1)
    assert isinstance(backend, backends.AnyLength)
    assert [backend.fit_segment(n) for n in (1, 15_872, 15_873, 10**9)] == [15_872, 15_872, 32_256, 196_096]
    segments = noise(2, 32_256)[None]
    whole = backend(segments)
    for matrix in (None, np.array([[0, 1, 1, 1]], np.float32)):
        expected = whole if matrix is None else whole[:, 1:].sum(axis=1, keepdims=True)
        for samples in (1, 700, 5_000, 32_256):
            newest = backend.newest(segments, samples, stem_matrix=matrix)
            np.testing.assert_allclose(newest, expected[..., -samples:], atol=1e-6)


def test_a_graph_of_fixed_length_takes_only_whole_segments(onnx_model: Build, noise: Noise) -> None:
    backend = load(onnx_model())
    assert backend.fit_segment(1) == 8192
    segments = noise(2, 8192)[None]
    np.testing.assert_allclose(backend.newest(segments, 100), backend(segments)[..., -100:], atol=1e-6)
