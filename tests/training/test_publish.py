"""Publishing: files, card, registry entry, and the upload to a server that speaks the hub's protocol."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from fake_hub import Hub, fake_hub
from tiny_model import TINY

from tfswa_sep.constants import STEMS
from tfswa_sep.errors import InputError
from tfswa_sep.evaluation.results import Evaluation, MethodScores, SongScore, StemScore
from tfswa_sep.model.unet import TfswaUNet
from tfswa_sep.registry.models_toml import read_models
from training.release import publish
from training.release.export import export_safetensors, load_checkpoint, round_to_half

ROOT = Path(__file__).resolve().parents[2]
PUBLISH_AND_FETCH = """
import os, sys
from pathlib import Path
from tfswa_sep.registry import fetch
from tfswa_sep.registry.models_toml import read_models
from training.release import publish
def write_graph(network, path, **_):  # test_pipeline.py publishes a real one
    path.write_bytes(b"a graph")
    return 0.0
publish.export_onnx = write_graph
os.environ["HF_TOKEN"] = "hf_wrong"
assert publish.main(sys.argv[1:]) == 4 and not Path({entry!r}).exists()
os.environ["HF_TOKEN"] = "hf_right"
code = publish.main(sys.argv[1:])
if not code:
    model = read_models(Path({entry!r}))["tried"]
    for backend in ("onnx", "torch"):
        print("fetched", fetch(model, backend).stat().st_size)
sys.exit(code)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = json.dumps({"training": {"optimizer": "muon", "learning_rate": 1e-3, "batch_size": 8}})
    state = {"shape": TINY.to_json(), "average": TfswaUNet(TINY).state_dict(), "step": 7, "config": config}
    torch.save(state, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def record(path: Path, digests: Mapping[str, str], *, museval: bool = False) -> Path:
    """Write the scores of two songs, and one that is excluded from the means, for each digest."""
    methods = []
    for name, digest in digests.items():
        songs = []
        for number, sdr in enumerate((3.0, 4.974, 99.0)):
            official = {"museval_sdr": sdr + 1} if museval else {}
            stems = {
                "vocals": StemScore({"sdr": sdr, **official}),
                "bass": StemScore({"sdr": 1.0, **official}),
            }
            songs.append(SongScore(f"song {number}", 60.0, 1.0, number == 2, stems, {}, ()))
        methods.append(
            MethodScores(name, "model", tuple(songs), sha256=digest, backend="onnx", precision="fp32")
        )
    evaluation = Evaluation(
        "MUSDB18 test", (), tuple(methods), "c", "2026-01-02T00:00:00", "m", {"tfswa-sep": "0.1.0"}
    )
    path.write_text(evaluation.to_json())
    return path


def test_scores_are_those_of_the_published_file(tmp_path: Path) -> None:
    path = record(tmp_path / "scores.json", {"other": "f" * 64, "tried": "a" * 64}, museval=True)
    scores = publish.read_scores(path, STEMS, {"a" * 64: "tried.onnx"})
    assert scores.means == {"vocals": 3.99, "bass": 1.0}
    assert "`tried.onnx` on MUSDB18 test (2 songs), measured with tfswa-sep 0.1.0" in scores.table
    assert "museval's (BSSEval v4), the median over frames of 1 s, then over the songs" in scores.table
    assert "| stem | songs | SDR v4 | global SDR |" in scores.table
    assert "| vocals | 2 | 4.99 | 3.99 |" in scores.table
    with pytest.raises(InputError, match=r"scores\.json has no scores of tried\.onnx \(SHA-256 bbbbbbbbbbbb"):
        publish.read_scores(path, STEMS, {"b" * 64: "tried.onnx"})
    path.write_text("[]")
    with pytest.raises(InputError, match=r"scores\.json is not a record of `tfswa-sep eval`"):
        publish.read_scores(path, STEMS, {})


def test_scores_of_another_file_are_rejected(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export_onnx(network: TfswaUNet, path: Path, **_: str) -> float:
        path.write_bytes(b"a graph")
        return 0.0

    monkeypatch.setattr(publish, "export_onnx", export_onnx)
    scores, out = tmp_path / "scores.json", tmp_path / "out"
    arguments = [
        str(checkpoint),
        "--name",
        "tried",
        "--license",
        "cc0-1.0",
        "--data",
        "songs",
        "--out",
        str(out),
    ]
    record(scores, {"tried": "f" * 64})
    assert publish.main([*arguments, "--scores", str(scores)]) == InputError.exit_code
    assert capsys.readouterr().err.count("\n") == 1 and not (out / "models.toml").exists()
    record(scores, {"another": "f" * 64, "tried": hashlib.sha256(b"a graph").hexdigest()})
    assert publish.main([*arguments, "--scores", str(scores)]) == 0
    assert "| vocals | 2 | 3.99 |" in (out / "README.md").read_text("utf-8")
    assert read_models(out / "models.toml")["tried"].scores["vocals"] == 3.99
    assert publish.main(arguments) == 0
    assert "Not measured yet." in (out / "README.md").read_text("utf-8")


@pytest.mark.parametrize("stems", [STEMS, ("vocals", "drums+bass", "other")])
def test_the_registry_can_read_an_entry(stems: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"abc")
    entry = publish.write_registry_entry(
        "a-b", dataclasses.replace(TINY, stems=stems), {"onnx": ("a.onnx", tmp_path / "a.onnx")},
        summary='Says "hello"', license_name="cc0-1.0",
        data="songs", scores=publish.Scores({stems[1]: 3.987}, ""),
    )  # fmt: skip
    assert "default" not in entry  # the owner of models.toml chooses the default
    (tmp_path / "models.toml").write_text(entry)
    model = read_models(tmp_path / "models.toml")["a-b"]
    assert (model.summary, model.stems, model.sample_rate) == ('Says "hello"', stems, 44_100)
    assert model.scores == {stems[1]: 3.99} and model.files[0].bytes == 3


@pytest.mark.slow
def test_a_checkpoint_is_uploaded_and_downloaded(checkpoint: Path, tmp_path: Path) -> None:
    """Uses the real client, in its own process because it reads the environment when imported."""
    arguments = [str(checkpoint), "--name", "tried", "--license", "cc0-1.0", "--data", "made-up songs"]
    network, _ = load_checkpoint(checkpoint)
    round_to_half(network)
    export_safetensors(network, tmp_path / "scored.safetensors", name="tried", license_name="cc0-1.0")
    digest = hashlib.sha256((tmp_path / "scored.safetensors").read_bytes()).hexdigest()
    scores = record(tmp_path / "scores.json", {"tried": digest})
    arguments += ["--out", str(tmp_path / "out"), "--scores", str(scores), "--repo", "org/tried"]
    own = {"TFSWA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    program = PUBLISH_AND_FETCH.format(entry=str(tmp_path / "out/models.toml"))
    with fake_hub(tmp_path / "home") as environment:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT, env=os.environ | environment | own, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot upload to org/tried") == 1 and "Traceback" not in done.stderr
    assert set(Hub.files) == {"tried.onnx", "tried.safetensors", "README.md"}
    for name, content in Hub.files.items():
        assert content == (tmp_path / "out" / name).read_bytes()
    sizes = [f"fetched {len(Hub.files[f'tried{suffix}'])}" for suffix in (".onnx", ".safetensors")]
    assert [line for line in done.stdout.splitlines() if line.startswith("fetched")] == sizes
    card = Hub.files["README.md"].decode()
    assert card.startswith("---\n") and "\nlicense: cc0-1.0\n" in card
    for part in (
        "| vocals | 2 | 3.99 |",
        "made-up songs",
        "7 steps (optimizer muon",
        "training.release.publish",
        "library_name",
        "--model hf://org/tried/tried.onnx",
    ):
        assert part in card
