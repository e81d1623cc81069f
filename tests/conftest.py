"""Fixtures that several test modules share."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import SHARES, STEMS, EvenBackend, FakeBackend, write_song
from faults import Call
from model_server import ModelServer, running_server
from numpy.typing import NDArray
from serve_process import Server
from tiny_model import REGISTRY, TINY, randomize_norms

from tfswa_sep.model.config import PRESETS

BROWSER_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that the processes that share the tests end together."""
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


@pytest.fixture(autouse=True)
def offline_mode_ends_with_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """--offline sets HF_HUB_OFFLINE for the whole process, and so for the tests after this one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", ""))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a song; commands in this process separate with EvenBackend."""
    from tfswa_sep import separator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(separator, "load_backend", lambda *args, **options: EvenBackend())
    write_song(tmp_path / "song.wav", seconds=0.5)
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """call(folder, words, environment): run the command in this process; its exit code and its stderr."""
    from tfswa_sep.cli import main

    def run(folder: Path, words: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        for name, value in {"COLUMNS": "80", **environment}.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        with open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False) as stderr:
            monkeypatch.setattr(
                sys, "stderr", stderr
            )  # the command silences libraries that write to descriptor 2
            code = main.run(words)
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelServer]:
    """A web server and Hugging Face hub; downloads and settings go to `cache` and `config` in tmp_path."""
    from tfswa_sep.registry import download

    monkeypatch.setenv("TFSWA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFSWA_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)
    with running_server() as running:
        yield running


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """serve(*arguments): a server in a process of its own, with its data in tmp_path / "data"."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    servers: list[Server] = []

    def start(*arguments: str) -> Server:
        servers.append(Server(tmp_path / "data", *arguments))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.end()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium without a window; it saves downloads in tmp_path / "downloads"."""
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*BROWSER_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


@pytest.fixture
def fake_backend() -> type[FakeBackend]:
    return FakeBackend


@pytest.fixture
def noise() -> Callable[..., NDArray[np.float32]]:
    """noise(channels, samples, peak=0.5): reproducible white noise (c, n)."""

    def make(channels: int, samples: int, peak: float = 0.5) -> NDArray[np.float32]:
        random = np.random.default_rng(samples)
        return random.uniform(-peak, peak, (channels, samples)).astype(np.float32)

    return make


@pytest.fixture
def song(tmp_path: Path, noise: Callable[..., NDArray[np.float32]]) -> Callable[..., Path]:
    """song("name.wav", samples (c, n) or their number, rate, subtype): a file in a folder of its own."""

    def write(
        name: str, samples: NDArray[np.float32] | int, rate: int = 44_100, subtype: str | None = "FLOAT"
    ) -> Path:
        data = noise(2, samples) if isinstance(samples, int) else samples
        path = tmp_path / "songs" / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, data.T, rate, subtype=subtype)
        return path

    return write


@pytest.fixture
def onnx_model(tmp_path: Path) -> Callable[..., Path]:
    """onnx_model(**metadata changes): a real ONNX file whose network splits the spectrogram into SHARES.

    metadata=None leaves it out; frames=N declares a graph that does not fit its metadata.
    """
    onnx = pytest.importorskip("onnx")

    def build(*, metadata: str | None = "", frames: int | None = None, **changes: Any) -> Path:
        config = {
            "n_fft": 512,
            "hop": 128,
            "bands": [{"start": 0, "stop": 256, "stride": 1}],
            "dims": [8],
            "convs": [1],
            "attentions": [0],
        }
        fields: dict[str, Any] = {
            "format": 2,
            "architecture": "shares",
            "config": config,
            "stems": list(STEMS),
            "sample_rate": 44_100,
            "channels": 2,
            "n_fft": 512,
            "hop": 128,
            "segment_samples": 8192,
            "margin_samples": 1024,
            "name": "shares",
            "license": "MIT",
        } | changes
        t = frames or 8192 // 128 + 1
        helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
        # A convolution of nothing but biases: for every stem the real and imaginary parts of two channels.
        masks = np.zeros((len(SHARES), 2, 2))
        masks[:, :, 0] = np.arctanh(SHARES)[:, None]
        graph = helper.make_graph(
            [helper.make_node("Conv", ["features_0", "nothing", "shares"], ["masks_0"])],
            "shares",
            [helper.make_tensor_value_info("features_0", float32, ["batch", 8, 256, t])],
            [helper.make_tensor_value_info("masks_0", float32, ["batch", 16, 256, t])],
            [
                helper.make_tensor("nothing", float32, [16, 8, 1, 1], [0.0] * 128),
                helper.make_tensor("shares", float32, [16], masks.flatten()),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        if metadata is not None:
            helper.set_model_props(model, {"tfswa_sep": metadata or json.dumps(fields)})
        path = tmp_path / "shares.onnx"
        onnx.save(model, path)
        return path

    return build


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, as training saves it, in a folder that holds nothing else."""
    torch = pytest.importorskip("torch")
    from tfswa_sep.model.unet import TfswaUNet

    path = tmp_path_factory.mktemp("exported") / "last.ckpt"
    torch.manual_seed(0)
    network = TfswaUNet(TINY)
    randomize_norms(network)
    torch.nn.init.normal_(network.split.frequency)
    torch.save({"shape": TINY.to_json(), "average": network.state_dict(), "step": 1}, path)
    return path


@pytest.fixture(scope="session")
def exported(checkpoint: Path) -> Path:
    """The folder of `checkpoint`, with the network as tiny.onnx and tiny.safetensors, and their registry."""
    pytest.importorskip("onnxscript")
    from training.release import export

    folder = checkpoint.parent
    (folder / "models.toml").write_text(REGISTRY)
    command = ["export", str(checkpoint), "--name", "tiny", "--out", str(folder), "--torch"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*command, "--registry", str(folder / "models.toml")])
        export.main()
    return folder


@pytest.fixture
def settings_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What training sets in the process is put back."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, settings_restored: None) -> None:
    """`small` is a tiny network."""
    monkeypatch.setitem(PRESETS, "small", TINY)


def write_pools(folder: Path) -> Path:
    """Pools as training.corpus.build writes them: two seconds of coloured noise each, and one song."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []

    def add(pool: str, name: str, audio: NDArray[np.float64], pieces: int, **extra: Any) -> None:
        (folder / pool).mkdir(parents=True, exist_ok=True)
        np.save(folder / pool / f"{name}.npy", (audio * 32_767).astype(np.int16))
        edges = np.linspace(0, len(audio), pieces + 1).astype(int).tolist()
        row = {
            "pool": pool,
            "source": name,
            "minutes": len(audio) / 44_100 / 60,
            "array": f"{pool}/{name}.npy",
            "segments": list(itertools.pairwise(edges)),
        }
        rows.append({**row, **extra})

    def noise(channels: int, seconds: float = 2.0) -> NDArray[np.float64]:
        return random.uniform(-0.5, 0.5, (round(seconds * 44_100), channels))

    for pool in ("drums", "bass", "other", "accompaniment"):
        add(pool, "stereo", noise(2), 1)
    add("vocals", "mono", noise(1), 1)
    add("vocals", "takes", noise(2), 20)  # pieces of 0.1 s
    moment = noise(2)  # stems of a song that are scaled copies show whether they are cut at one place
    for stem, scale in zip(STEMS, (1.0, 0.5, 0.3, 0.2), strict=True):
        add("song", f"a.{stem}", moment * scale, 1, song="a", stem=stem)
    for stem, scale in zip(STEMS[1:], (0.5, 0.3, 0.2), strict=True):
        add("band", f"b.{stem}", moment * scale, 1, song="b", stem=stem)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "sample_rate": 44_100, "sources": rows}))
    return folder


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pools(tmp_path_factory.mktemp("pools"))


@pytest.fixture
def own_pools(tmp_path: Path) -> Path:
    return write_pools(tmp_path / "pools")
