"""The OpenVINO backend; `make test-openvino` has the package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa_sep import Separator, load_model
from tfswa_sep.errors import DeviceError, ModelError
from tfswa_sep.inference import hardware
from tfswa_sep.inference.hardware import prefers_openvino
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.inference.overlap_add import Samples
from tfswa_sep.options import Runtime

if not importlib.util.find_spec("openvino"):
    pytest.skip("openvino is not installed", allow_module_level=True)
from tfswa_sep.inference.openvino_backend import OpenVinoBackend

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "demo.ogg"
SMALL = Path(str(resources.files("tfswa_sep") / "weights" / "small.onnx"))
SECONDS = 10


@pytest.fixture(scope="module")
def song() -> Samples:
    samples, _ = soundfile.read(DEMO, frames=SECONDS * 44_100, dtype="float32")
    return np.ascontiguousarray(samples.T)


def ratio(expected: Samples, found: Samples) -> float:
    """Signal to noise, dB."""
    return float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


def test_the_stems_are_those_of_onnx_runtime(song: Samples, tmp_path: Path) -> None:
    expected = Separator(backend="onnx", precision="fp32").separate(song, 44_100)
    for precision, least in (("fp32", 80), ("int8", 10), ("auto", 30)):
        separator = Separator(backend="openvino", precision=precision)
        assert separator.backend.name == "openvino" and separator.backend.device == "cpu"
        found = separator.separate(song, 44_100)
        for stem, samples in expected.items():
            assert ratio(samples, found[stem]) > least, (precision, stem)


def test_calls_from_several_threads_do_not_meet(song: Samples) -> None:
    backend = OpenVinoBackend(SMALL, precision="fp32", threads=2)
    n = backend.segment_samples
    segments = [song[None, :, start : start + n] for start in (0, 1000, 2000, 3000)]
    expected = [backend(each) for each in segments]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for one, other in zip(expected, pool.map(backend, segments), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-6)


def test_several_segments_and_shorter_ones(song: Samples) -> None:
    ours, onnx = OpenVinoBackend(SMALL, precision="fp32"), OnnxBackend(SMALL)
    n = ours.segment_samples
    pair = np.stack([song[:, :n], song[:, 5000 : 5000 + n]])
    np.testing.assert_allclose(ours(pair), onnx(pair), atol=1e-4)
    short = ours.fit_segment(20_000)
    assert short == onnx.fit_segment(20_000)
    window = song[None, :, :short]
    np.testing.assert_allclose(ours.newest(window, 3000), onnx.newest(window, 3000), atol=1e-4)


def test_compiled_networks_are_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    OpenVinoBackend(SMALL, cache=cache)
    assert list(cache.iterdir())
    (tmp_path / "file").touch()
    OpenVinoBackend(SMALL, cache=tmp_path / "file" / "cache")  # cannot be made


def test_a_missing_device_is_one_line() -> None:
    import openvino  # its telemetry is off by now

    present = {name.partition(".")[0].lower() for name in openvino.Core().available_devices}
    for device in {"gpu", "npu"} - present:
        with pytest.raises(DeviceError, match=f"OpenVINO finds no {device} here: use --device cpu"):
            _ = Separator(device=device).backend
    with pytest.raises(DeviceError, match="cannot use gpu: use --backend openvino"):
        _ = Separator(device="gpu", backend="onnx").backend


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("cut", SMALL.read_bytes()[:1_000_000]), ("text", b"no model\n" * 99)):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(ModelError) as error:
            OpenVinoBackend(path)
        assert "\n" not in str(error.value) and path.name in str(error.value)


def test_a_network_that_cannot_be_compiled_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel\nfound")

    monkeypatch.setattr("tfswa_sep.inference.openvino_backend._compile", fail)
    with pytest.raises(DeviceError, match=r"small.onnx on cpu \(no kernel\): use --backend onnx"):
        OpenVinoBackend(SMALL)


def test_auto_takes_it_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"amx_bf16", "amx_int8"}))
    assert prefers_openvino(Runtime()) and load_model().name == "openvino"
    assert not hardware.prefers_int8(Runtime())
    for other in (
        Runtime(precision="int8"),
        Runtime(precision="fp32"),
        Runtime(backend="onnx"),
        Runtime(device="cuda"),
    ):
        assert not prefers_openvino(other)
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    assert not prefers_openvino(Runtime()) and load_model().name == "onnx"


def test_nothing_is_sent(tmp_path: Path) -> None:
    """`import openvino` alone would report to its makers' analytics."""
    script = (
        "import socket\n"
        "def refuse(*_): print('connects', flush=True); raise OSError\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from tfswa_sep.cli.main import run\n"
        f"code = run([{str(DEMO)!r}, '--backend', 'openvino', '--out', {str(tmp_path)!r}, '--stems', 'bass'])\n"
        "raise SystemExit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "bass.wav" in done.stdout and "connects" not in done.stdout
