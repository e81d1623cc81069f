"""Exports for other programs: agreement with torch, and the C++ example."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tiny_model import TINY, randomize_norms
from torch import nn
from torch.export import ExportedProgram

from tfswa_sep.inference.metadata import KEY, parse_metadata
from tfswa_sep.inference.onnx_backend import OnnxBackend
from tfswa_sep.model.config import ModelConfig
from tfswa_sep.model.unet import TfswaUNet
from training.release import programs
from training.release.export import TOLERANCE, export_safetensors

ROOT = Path(__file__).resolve().parents[2]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
pytestmark = [
    pytest.mark.slow,
    # torch's exporter uses deprecated parts of torch.
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def network() -> TfswaUNet:
    """A tiny network with non-trivial batch norm statistics."""
    torch.manual_seed(0)
    tiny = TfswaUNet(TINY)
    randomize_norms(tiny)
    return tiny.eval()


@pytest.fixture(scope="module")
def song() -> np.ndarray:
    samples, _ = soundfile.read(ROOT / "examples/demo/demo.ogg", dtype="float32", always_2d=True)
    return np.ascontiguousarray(samples.T)


@pytest.fixture(scope="module")
def program(network: TfswaUNet) -> ExportedProgram:
    return programs.export_program(network)


def test_onnx_takes_any_batch_and_length(
    network: TfswaUNet, program: ExportedProgram, song: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.dynamic.onnx"
    programs.write(program, "onnx", path, config=TINY, name="tiny")
    assert programs.compare(programs.read("onnx", path), network, song) <= TOLERANCE
    backend = OnnxBackend(path)  # so `tfswa-sep --model` reads it
    assert ModelConfig.from_json(backend.metadata.config) == TINY
    assert np.abs(backend(song[None, :, : TINY.segment_samples])).max() > 0.01


def test_an_exported_program_keeps_its_metadata(
    network: TfswaUNet, program: ExportedProgram, song: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.pt2"
    programs.write(program, "pt2", path, config=TINY, name="tiny")
    assert programs.compare(programs.read("pt2", path), network, song) <= TOLERANCE
    extra_files = {KEY: ""}
    torch.export.load(path, extra_files=extra_files)
    assert parse_metadata(extra_files[KEY], file="tiny").name == "tiny"


def test_torchscript_works_with_a_deprecation_warning(
    network: TfswaUNet, song: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.torchscript.pt"
    with pytest.warns(DeprecationWarning, match=r"`torch\.jit"):
        programs.write_torchscript(network, path, name="tiny")
        run = programs.read("torchscript", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert programs.compare(run, network, song) <= TOLERANCE
    wrong = TfswaUNet(TINY).eval()
    nn.init.normal_(wrong.heads[0].convs[0].weight)  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match="the stems differ from torch's by"):
        programs.compare(run, wrong, song)


@pytest.mark.proof
@needs_compiler
def test_cpp_runs_the_compiled_program(network: TfswaUNet, song: np.ndarray, tmp_path: Path) -> None:
    """Exports with the command, then builds and runs the example as its comment says.

    In a separate process: torch's compiler imports setuptools, which fails after some other tests.
    """
    model = tmp_path / "tiny.safetensors"
    export_safetensors(network, model, name="tiny")
    options = [
        "--formats",
        "aoti",
        "--sample",
        "--out",
        str(tmp_path),
        "--song",
        str(ROOT / "examples/demo/demo.ogg"),
    ]
    command = [sys.executable, "-m", "training.release.programs", str(model), *options]
    exported = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert exported.returncode == 0, exported.stderr[-2000:]
    shape = exported.stdout.strip().rsplit(": ", 1)[1].split()
    assert shape == [str(4 * TINY.frame_multiple), "8", "128", "8", "896"]
    library = Path(torch.__path__[0])
    binary = tmp_path / "masks"
    built = subprocess.run(
        ["g++", "-std=c++20", str(ROOT / "examples/masks.cpp"), "-o", str(binary), f"-I{library}/include",
         f"-I{library}/include/torch/csrc/api/include", f"-L{library}/lib", f"-Wl,-rpath,{library}/lib",
         "-ltorch", "-ltorch_cpu", "-lc10"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-2000:]
    files = [tmp_path / "tiny.aoti.pt2", tmp_path / "features.f32", tmp_path / "masks.f32"]
    ran = subprocess.run([binary, *files, *shape], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "differ by" in ran.stdout
    files[2].write_bytes(bytes(files[2].stat().st_size))  # the example must notice wrong masks
    assert subprocess.run([binary, *files, *shape], capture_output=True, check=False).returncode == 1
    wrong = subprocess.run([binary, *files, "3", "8", "128"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (2, "the features are of another shape\n")
