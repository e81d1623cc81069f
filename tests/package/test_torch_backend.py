"""The PyTorch backend where something goes wrong: memory that runs out, 16 bits that are too few."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from safetensors import safe_open
from safetensors.torch import save_file
from tiny_model import TINY

from tfswa_sep.errors import DeviceError, ModelError
from tfswa_sep.inference import torch_backend
from tfswa_sep.inference.metadata import KEY
from tfswa_sep.inference.torch_backend import MAX_BATCH_SIZE, TorchBackend, segments_that_fit
from tfswa_sep.model.unet import TfswaUNet
from tfswa_sep.separator import Separator, load_model
from training.distributed import pick_precision
from training.release.export import export_safetensors

N = TINY.segment_samples
SHARES = np.array([0.5, 0.25, 0.125, 0.125], np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "tiny.safetensors"
    torch.manual_seed(0)
    export_safetensors(TfswaUNet(TINY), path, name="tiny")
    return path


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


def test_the_threads_are_shared_by_segments_at_once(model: Path) -> None:
    before, used = torch.get_num_threads(), []
    for threads in (1, 2, 6):
        backend = TorchBackend(model, device="cpu", threads=threads)
        backend._network.split.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))
        backend(noise(1, 2, N))
        assert backend.workers * used[-1] == threads
        assert torch.get_num_threads() == before  # the caller's own work keeps its threads
    assert used == [1, 1, 2]


def test_torch_chooses_the_threads_if_the_cores_are_unknown(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_backend, "count_cores", lambda: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    backend = TorchBackend(model, device="cpu")
    assert (backend.workers, backend._threads) == (3, 2)


@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_it_may_be_called_from_threads(model: Path, half: Any) -> None:
    backend = TorchBackend(model, device="cpu", threads=1)
    backend._half = half
    segments = [noise(1, 2, N) * np.float32(scale) for scale in np.linspace(0.2, 1.6, 8)]
    expected = [backend(segment) for segment in segments]
    with ThreadPoolExecutor(4) as pool:
        for stems, wanted in zip(pool.map(backend, segments), expected, strict=True):
            np.testing.assert_allclose(stems, wanted, atol=1e-5)


@pytest.mark.parametrize("mix", [None, np.array([[1, 0, 0, 0], [0, 1, 1, 1]], np.float32)])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_a_processor_computes_what_a_gpu_would(
    model: Path, half: Any, mix: NDArray[np.float32] | None
) -> None:
    """Around the network it computes with NumPy. The network may be of 16 bits, all else is not."""
    backend, segments = TorchBackend(model, device="cpu"), noise(2, 2, N)
    wanted = backend._compute_on_device(segments, mix, half)
    tolerance = 1e-5 if half is None else 5e-4  # a feature's last digit may tip 16 bits
    np.testing.assert_allclose(backend._compute(segments, mix, half), wanted, atol=tolerance)
    assert (np.abs(wanted - backend(segments, stem_matrix=mix)).max() > 1e-4) == (half is not None)


def test_norms_that_follow_a_convolution_are_part_of_it(model: Path) -> None:
    network, _ = torch_backend.load_network(model)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # of a network that has learnt something
            torch.nn.init.normal_(module.running_mean)
            for numbers in (module.running_var, module.weight, module.bias):
                torch.nn.init.uniform_(numbers, 0.5, 2.0)
    spectrum = torch.randn(1, 4, 1025, 8)
    expected = network.eval()(spectrum)
    folded = torch_backend._fold_following_norms(network)
    left = [name for name, module in folded.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert left and not any("hidden" in name or "layers" in name or "down" in name for name in left)
    torch.testing.assert_close(folded(spectrum), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_loading_imports_no_compiler(model: Path) -> None:
    """Of torch's modules those for tensors without numbers take longest: twice as long as to load a model."""
    code = (
        "import sys; from pathlib import Path; from tfswa_sep.inference.torch_backend import TorchBackend;"
        f"TorchBackend(Path({str(model)!r}), device='cpu'); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def limit_memory(backend: TorchBackend, samples: int) -> list[tuple[int, int]]:
    """Let torch's own allocator fail in the network for more samples at once; returns (b, t) of all tries."""
    tried = []

    def allocate(module: Any, inputs: tuple[Any, ...]) -> None:
        b, _, _, t = inputs[0][0].shape  # of the first band
        tried.append((b, t))
        if b * (t - 1) * TINY.hop > samples:
            torch.empty(1 << 55, dtype=torch.uint8)

    backend._network.split.register_forward_pre_hook(allocate)
    return tried


def test_less_memory_means_fewer_segments_at_once(model: Path) -> None:
    segments = noise(5, 2, N)
    mix = np.array([[0, 1, 1, 1]], np.float32)
    expected, mixed = TorchBackend(model)(segments), TorchBackend(model)(segments, stem_matrix=mix)
    backend = TorchBackend(model)
    assert not backend.notes
    tried = limit_memory(backend, 2 * N)
    np.testing.assert_allclose(backend(segments), expected, atol=1e-5)
    assert [b for b, _ in tried] == [5, 2, 2, 1]
    np.testing.assert_allclose(backend(segments, stem_matrix=mix), mixed, atol=1e-5)
    assert [b for b, _ in tried[4:]] == [2, 2, 1]  # what was learnt stays
    assert backend.notes == (
        "cpu ran out of memory, so the load was reduced to segments of 0.4 s, at most 2 per call",
    )


def test_still_less_means_shorter_segments(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that needs no context must then give the very same stems."""
    segments, backend = noise(2, 2, N), TorchBackend(model)
    lengths = []

    def compute(segment: NDArray[np.float32], mix: Any, half: Any) -> NDArray[np.float32]:
        lengths.append(segment.shape[-1] * len(segment))
        if lengths[-1] > N - 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        stems = segment[:, None] * SHARES[:, None, None]
        return stems if mix is None else np.einsum("ks,bscn->bkcn", mix, stems)

    monkeypatch.setattr(backend, "_compute", compute)
    np.testing.assert_allclose(backend(segments), segments[:, None] * SHARES[:, None, None], atol=1e-6)
    mix = np.array([[1, 0, 0, 1]], np.float32)
    np.testing.assert_allclose(backend(segments, stem_matrix=mix), segments[:, None] * 0.625, atol=1e-6)
    assert lengths[:2] == [2 * N, N] and max(lengths[2:]) < N
    assert backend.notes == (
        "cpu ran out of memory, so the load was reduced to segments of 0.2 s, at most 1 per call",
    )


def test_the_song_stays_whole_and_the_fallback_is_reported(model: Path, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "song.wav", noise(3 * N, 2), 44_100)
    separator = Separator.from_checkpoint(model, backend="torch", batch_size=4)
    limit_memory(separator.backend, N // 2)  # type: ignore[arg-type]
    result = separator.separate_file(tmp_path / "song.wav", out=tmp_path)
    assert any("cpu ran out of memory" in line for line in result.warnings)
    stems = [soundfile.read(path)[0] for path in result.files.values()]
    np.testing.assert_allclose(sum(stems), soundfile.read(tmp_path / "song.wav")[0], atol=1e-4)


def test_too_little_memory_is_one_line(model: Path) -> None:
    backend = TorchBackend(model)
    limit_memory(backend, 0)
    with pytest.raises(DeviceError, match="cpu ran out of memory while separating: close other programs"):
        backend(noise(1, 2, N))


def test_other_failures_are_not_mistaken_for_lack_of_memory(model: Path) -> None:
    with pytest.raises(ModelError, match="cannot be run"):
        TorchBackend(model)(noise(1, 3, N))


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_understood(
    model: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    backend, segments = TorchBackend(model), noise(2, 2, N)
    expected, compute = backend(segments), backend._compute

    def run_out(segment: NDArray[np.float32], mix: Any, half: Any) -> NDArray[np.float32]:
        if len(segment) > 1:
            raise RuntimeError(message)
        return compute(segment, mix, half)

    monkeypatch.setattr(backend, "_compute", run_out)
    np.testing.assert_allclose(backend(segments), expected, atol=1e-5)


def test_a_device_that_cannot_compute_is_reported_at_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch_backend, "_probe", fail)
    with pytest.raises(
        DeviceError, match=r"cpu cannot be used \(CUDA error: no kernel .* more\): use --device"
    ):
        TorchBackend(model)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "wanted"),
    [(True, True, torch.bfloat16), (False, True, torch.bfloat16), (False, False, None)],
)
def test_a_cpu_gets_16_bits_if_it_multiplies_them(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, wanted: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert torch_backend._half_precision(torch.device("cpu")) == wanted
    assert pick_precision("auto", "cpu") == ("32-true" if wanted is None else "bf16-mixed")


@pytest.mark.parametrize("mix", [None, np.array([[0, 1, 1, 1]], np.float32)])
@pytest.mark.parametrize("breaks", [False, True])
def test_16_bits_give_way_to_32(
    model: Path, monkeypatch: pytest.MonkeyPatch, breaks: bool, mix: NDArray[np.float32] | None
) -> None:
    monkeypatch.setattr(torch_backend, "_half_precision", lambda device: torch.bfloat16)
    segments, backend = noise(1, 2, N), TorchBackend(model, precision="auto")

    def overflow(module: Any, inputs: Any, output: Any) -> Any:
        return output * float("inf") if breaks and torch.is_autocast_enabled("cpu") else output

    backend._network.split.register_forward_hook(overflow)
    expected, found = TorchBackend(model)(segments, stem_matrix=mix), backend(segments, stem_matrix=mix)
    error = np.abs(found - expected).max()
    if breaks:
        assert error == 0
        assert backend.notes == ("bf16 gave NaN or infinite values, so fp32 was used instead (1 times)",)
    else:
        assert 0 < error < 0.05
        assert not backend.notes


def test_fp32_takes_no_16_bits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "_half_precision", lambda device: torch.bfloat16)
    segments = noise(1, 2, N)
    plain, asked = (
        load_model(model, backend="torch", precision=precision)(segments) for precision in ("fp32", "auto")
    )
    assert (plain == TorchBackend(model)(segments)).all()
    assert (plain != asked).any()


def test_a_batch_fits_into_free_memory(model: Path) -> None:
    assert segments_that_fit(1000, 100) == 8
    assert segments_that_fit(100, 1000) == 1
    assert segments_that_fit(1 << 40, 1) == MAX_BATCH_SIZE == segments_that_fit(1 << 40, 0)
    assert TorchBackend(model, device="cpu").batch_size == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_stems(model: Path) -> None:
    backend = TorchBackend(model, device="cuda", precision="auto")
    assert backend.batch_size == MAX_BATCH_SIZE
    segments = noise(MAX_BATCH_SIZE, 2, N)
    expected = TorchBackend(model, device="cpu")(segments)
    np.testing.assert_allclose(TorchBackend(model, device="cuda")(segments), expected, atol=2e-3)
    assert np.abs(backend(segments) - expected).max() < 0.05


def test_a_file_from_when_the_input_layer_was_called_the_stem(model: Path, tmp_path: Path) -> None:
    """Its configuration and the names of its weights are of that time."""
    with safe_open(model, framework="pt") as file:
        told = json.loads(file.metadata()[KEY])
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    assert told["config"]["split"] == "bands" and "split.norm.weight" in weights
    told["config"]["stem"] = told["config"].pop("split")
    older = {re.sub(r"^split\.", "stem.", key): value for key, value in weights.items()}
    save_file(older, path := tmp_path / "old.safetensors", metadata={KEY: json.dumps(told)})
    loaded = torch_backend.load_network(path)[0].state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
