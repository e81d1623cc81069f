"""Every preset and kind of mask trains, saves, resumes and exports, in bf16 and float32, alone and in two processes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from train_process import TrainingProcess

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")
pytest.importorskip("lightning_fabric")

from tfswa_sep.model.config import PRESETS, ModelConfig
from training.configuration import load_config
from training.distributed import SyncedBatchNorm
from training.release.export import load_checkpoint
from training.train import train

PRECISIONS = ("bf16-mixed", "32-true")


def fewest_features(shape: ModelConfig) -> dict[str, Any]:
    """Make changes to a preset that leave as few features as possible."""
    stages = len(shape.dims)
    return {
        "dims": (8,) * stages,
        "convs": (1,) * stages,
        "attentions": (0,) * (stages - 1) + (1,),
        "tdfs": tuple(min(hidden, 4) for hidden in shape.tdfs),
        "heads": 2,
        "head_dim": 4,
        "segment_samples": (shape.frame_multiple - 1) * shape.hop,
        "margin_samples": 1024,
    }


# Presets that differ only in size are one case.
DISTINCT = {
    replace(shape, **fewest_features(shape)): preset for preset, shape in reversed(PRESETS.items())
}.values()
CASES = {
    **{preset: (preset, PRESETS[preset].masks) for preset in DISTINCT},
    **{f"small {masks}": ("small", masks) for masks in ("complex", "real")},
}
# An export takes ten seconds. test_export.py exports a network with the parts of `reference`, and test_pipeline.py one
# with those of `small`; kinds of masks are not part of the graph.
EXPORTED = ("paper", "bf16-mixed")


def words(case: str, precision: str, steps: int, *, pools: Path, out: Path) -> list[str]:
    """Overrides for a preset with as few features as possible."""
    preset, masks = CASES[case]
    shape = PRESETS[preset]
    changes = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (fewest_features(shape) | {"masks": masks}).items()
    }
    return [
        f"data.pools={pools}", f"out={out}", f"model={preset}",
        *(f"model.changes.{key}={value}" for key, value in changes.items()),
        f"data.mix.seconds={(shape.frame_multiple - 1) * shape.hop / shape.sample_rate}",
        f"training.steps={steps}", f"training.precision={precision}", "training.batch_size=1",
        "training.workers=0", "training.threads=1", "training.warmup_steps=1",
        "training.accelerator=cpu", "training.log_every=1", "training.optimizer=adamw",
        "training.loss={domain: spectrum, stft: 1.0, sdr: 0.02}",
    ]  # fmt: skip


def check(out: Path, steps: int) -> None:
    """Check that the checkpoint is of that step, that its weights are finite, and that their types are the network's.

    Every combination thus exports the same graph.
    """
    network, stored = load_checkpoint(out / "last.ckpt")
    assert stored["step"] == steps
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    kinds = [
        {key: (value.shape, value.dtype) for key, value in tensors.items()}
        for tensors in (network.state_dict(), stored["average"])
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_a_preset_trains_saves_and_resumes(
    case: str, precision: str, pools: Path, tmp_path: Path, settings_restored: None
) -> None:
    for steps in (2, 3):
        train(load_config(words(case, precision, steps, pools=pools, out=tmp_path)))
        check(tmp_path, steps)
    if (case, precision) == EXPORTED:
        pytest.importorskip("onnxscript")
        from training.release.export import export_onnx

        network, _ = load_checkpoint(tmp_path / "last.ckpt")
        assert math.isfinite(export_onnx(network, tmp_path / "x.onnx", name="x"))


@pytest.mark.slow
@pytest.mark.longest
def test_presets_train_in_two_processes(pools: Path, tmp_path: Path) -> None:
    """Those of different kinds, which have every kind of mask."""
    assert {PRESETS[preset].masks for preset in DISTINCT} == {"complex", "real", "signed"}
    runs = list[list[str]]()
    for preset, precision in zip(DISTINCT, itertools.cycle(PRECISIONS), strict=False):
        runs += [words(preset, precision, steps, pools=pools, out=tmp_path / preset) for steps in (2, 3)]
    with TrainingProcess(*runs, tiny=False, torchrun=True) as training:
        said = training.output.read()
    assert training.exit_code == 0, said[-5000:]
    for preset in DISTINCT:
        check(tmp_path / preset, 3)


def test_synchronized_batch_norms_accept_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are those of torch's own batch norm."""
    monkeypatch.setattr("training.distributed._mean_over_processes", lambda x: x)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)
    x = torch.randn(2, 4, 8, 8).bfloat16()
    plain, shared = torch.nn.BatchNorm2d(4), SyncedBatchNorm(4)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, found = plain(x), shared(x)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(shared.running_mean, plain.running_mean)
    torch.testing.assert_close(shared.running_var, plain.running_var)
