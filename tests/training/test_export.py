"""Export: the files, their registry entry, and the agreement of both backends."""

from __future__ import annotations

import dataclasses
import tomllib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tiny_model import REGISTRY, TINY
from torch import nn

import tfswa_sep
from tfswa_sep.constants import STEMS
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.inference.torch_backend import TorchBackend, load_network
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.unet import TfswaUNet
from training.release import export

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path(tfswa_sep.__file__).parent / "weights"
RATE = 44_100


def test_only_sizes_and_hashes_change_in_the_registry(tmp_path: Path) -> None:
    registry, model = tmp_path / "models.toml", tmp_path / "tiny.onnx"
    registry.write_text(REGISTRY)
    model.write_bytes(b"abc")
    export.update_registry(registry, name="tiny", files={"onnx": model})
    of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    changed = REGISTRY.replace('sha256 = "00"\nbytes = 1', f'sha256 = "{of_abc}"\nbytes = 3', 1)
    assert registry.read_text() == changed
    for name, files in (("tiny", {"torch": model}), ("unknown", {"onnx": model}), ("ti.y", {"onnx": model})):
        with pytest.raises(ValueError, match=rf"has no bundled \w+ file tiny\.onnx under models\.{name}"):
            export.update_registry(registry, name=name, files=files)
    assert registry.read_text() == changed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models.toml", "tiny.onnx"]


@pytest.mark.slow
def test_the_backends_read_exported_files(exported: Path) -> None:
    for backend in (OnnxBackend(exported / "tiny.onnx"), TorchBackend(exported / "tiny.safetensors")):
        assert backend.stems == STEMS and (backend.sample_rate, backend.channels) == (RATE, 2)
        assert (backend.segment_samples, backend.margin_samples) == (31 * 512, 1024)
        assert (backend.metadata.name, backend.metadata.n_fft, backend.metadata.hop) == ("tiny", 2048, 512)
        assert ModelConfig.from_json(backend.metadata.config) == TINY
    for file in tomllib.loads((exported / "models.toml").read_text())["models"]["tiny"]["files"]:
        content = (exported / file["where"].removeprefix("bundled:")).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), sha256(content).hexdigest())
    assert str(ROOT).encode() not in (exported / "tiny.onnx").read_bytes()  # no local paths


@pytest.mark.parametrize("stems", [("vocals", "drums+bass"), ("vocals", "accompaniment")])
def test_a_network_with_sums_of_stems_is_exported(tmp_path: Path, stems: tuple[str, ...]) -> None:
    network = TfswaUNet(dataclasses.replace(TINY, stems=stems, mixture_consistent=False)).eval()
    export.export_safetensors(network, tmp_path / "sums.safetensors", name="sums")
    assert TorchBackend(tmp_path / "sums.safetensors").stems == stems


@pytest.mark.slow
def test_a_different_graph_is_an_error(exported: Path) -> None:
    network = load_network(exported / "tiny.safetensors")[0].eval()
    assert export.compare(network, exported / "tiny.onnx") <= export.TOLERANCE
    nn.init.normal_(network.heads[0].convs[0].weight)  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match=r"tiny\.onnx: ONNX Runtime differs from torch by"):
        export.compare(network, exported / "tiny.onnx")


def demo_segments(samples: int, *, count: int) -> NDArray[np.float32]:
    """(count, c, samples) of the demo song, from its middle on."""
    audio, rate = soundfile.read(ROOT / "examples/demo/demo.ogg", dtype="float32", always_2d=True)
    assert rate == RATE
    start = (len(audio) - count * samples) // 2
    return np.ascontiguousarray(
        audio[start : start + count * samples].reshape(count, samples, 2).transpose(0, 2, 1)
    )


@pytest.mark.slow
def test_backends_agree_on_music(exported: Path) -> None:
    onnx, pytorch = (
        OnnxBackend(exported / "tiny.onnx"),
        TorchBackend(exported / "tiny.safetensors", device="cpu"),
    )
    segments = demo_segments(TINY.segment_samples, count=8)
    one, other = onnx(segments), pytorch(segments)
    assert one.shape == other.shape == (8, 4, 2, TINY.segment_samples)
    assert np.abs(one - other).max() < 1e-3
    assert np.abs(one).max() > 0.1  # of full scale
    mix = np.array([[0, 1, 1, 1]], np.float32)
    assert np.abs(onnx(segments, stem_matrix=mix) - pytorch(segments, stem_matrix=mix)).max() < 1e-3
    np.testing.assert_allclose(pytorch(segments, stem_matrix=mix)[:, 0], other[:, 1:].sum(axis=1), atol=1e-5)


@pytest.mark.slow
def test_the_bundled_files_agree_on_music() -> None:
    files = WEIGHTS / "small.onnx", WEIGHTS / "small.safetensors"
    if not all(path.is_file() for path in files):
        pytest.skip("small is not bundled for both backends")
    onnx, pytorch = OnnxBackend(files[0]), TorchBackend(files[1], device="cpu")
    assert onnx.metadata == pytorch.metadata
    segment = demo_segments(onnx.segment_samples, count=1)
    one, other = onnx(segment), pytorch(segment)
    assert np.abs(one - other).max() < 1e-3
    assert np.abs(one).max() > 0.1


def test_exports_are_written_next_to_the_checkpoint_by_default(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(network: TfswaUNet, path: Path, *, name: str) -> float:
        path.write_text(name)
        return 0.0

    monkeypatch.setattr(export, "export_onnx", fake)
    before = {path: sha256(path.read_bytes()).hexdigest() for path in WEIGHTS.iterdir() if path.is_file()}
    copy = tmp_path / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    for config, name in (("{}", "small"), ('{"model": {"preset": "paper"}}', "paper")):
        torch.save({**state, "config": config}, copy)
        monkeypatch.setattr("sys.argv", ["export", str(copy)])
        export.main()
        assert (tmp_path / f"{name}.onnx").read_text() == name
    assert before == {path: sha256(path.read_bytes()).hexdigest() for path in before}
    monkeypatch.setattr("sys.argv", ["export", str(copy), "--registry", "models.toml"])
    with pytest.raises(SystemExit):
        export.main()
    assert "add --out tfswa_sep/weights" in capsys.readouterr().err
