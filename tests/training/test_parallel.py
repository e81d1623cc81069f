"""Several processes train like one with all of their examples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_model import TINY_WORDS
from train_process import TrainingProcess

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")
pytest.importorskip("lightning_fabric")

from tfswa_sep.errors import UsageError
from training.configuration import load_config
from training.distributed import launch
from training.train import train

ROOT = Path(__file__).resolve().parents[2]


def words(pools: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.pools={pools}", f"out={out}", "data.mix.seconds=0.4",
        "training.workers=0", "training.threads=1",
        # All stems are known, so that the mean over processes is that over examples.
        "data.mix.kinds={stems: 1.0, band: 0.0, accompaniment: 0.0, song: 0.0}",
        # AdamW's first steps amplify rounding errors, hence the low learning rate.
        "training.schedule=step", "training.warmup_steps=1", "training.optimizer=adamw",
        "training.learning_rate=1.0e-5", "seed=3",
        "training.accelerator=cpu", "training.precision=32-true", "training.log_every=1",
        "model.checkpointing=true", *more,
    ]  # fmt: skip


def train_in_two(*runs: list[str]) -> None:
    with TrainingProcess(*runs, torchrun=True) as training:
        said = training.output.read()
    assert training.exit_code == 0, said[-5000:]


def curve(out: Path, name: str) -> list[float]:
    """Read a value of every step from TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    record.Reload()
    return [event.value for event in record.Scalars(f"train/{name}")]


@pytest.mark.slow
@pytest.mark.longest
def test_two_processes_train_like_one_with_twice_the_batch(pools: Path, tmp_path: Path, tiny: None) -> None:
    """One process and two also resume from each other's checkpoints."""
    one, ddp, fsdp, resumed = (tmp_path / name for name in ("one", "ddp", "fsdp", "resumed"))
    alone, half = "training.batch_size=4", "training.batch_size=2"
    train(load_config(words(pools, one, alone, "training.steps=4")))
    train(load_config(words(pools, ddp, alone, "training.steps=1")))
    shutil.copytree(ddp, resumed)
    train_in_two(
        words(pools, ddp, half, "training.steps=3"),
        words(pools, fsdp, half, "training.steps=2", "training.strategy=fsdp"),
        words(pools, resumed, half, "training.steps=4", "training.strategy=fsdp"),
    )
    train(load_config(words(pools, ddp, alone, "training.steps=4")))
    train(load_config(words(pools, fsdp, alone, "training.steps=4")))
    for out, processes in ((ddp, [1, 2, 1]), (fsdp, [2, 1]), (resumed, [1, 2])):
        assert [start["processes"] for start in json.loads((out / "run.json").read_text())] == processes
    expected: dict[str, Any] = torch.load(one / "last.ckpt", weights_only=True)
    assert len({round(loss, 3) for loss in curve(one, "loss")}) == 4
    for out in (ddp, fsdp, resumed):
        assert curve(out, "loss") == pytest.approx(curve(one, "loss"), rel=1e-5)
        assert curve(out, "gradient_norm") == pytest.approx(curve(one, "gradient_norm"), rel=1e-3)
        found = torch.load(out / "last.ckpt", weights_only=True)
        assert found["step"] == 4 and found["average"].keys() == expected["average"].keys()
        for key, value in expected["average"].items():
            torch.testing.assert_close(found["average"][key], value, atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.ray
def test_ray_train_gives_the_losses_of_torchrun(pools: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for strategy in ("ddp", "fsdp"):
        more = (f"training.strategy={strategy}", "training.batch_size=2", "training.steps=3", *TINY_WORDS)
        train_in_two(words(pools, tmp_path / f"torchrun {strategy}", *more))
        settings = words(pools, tmp_path / f"ray {strategy}", *more)
        done = subprocess.run(
            [sys.executable, "-m", "examples.train_on_ray", "--workers=2", *settings],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        (start,) = json.loads((tmp_path / f"ray {strategy}" / "run.json").read_text())
        assert start["processes"] == 2
        for name in ("loss", "gradient_norm"):
            found = curve(tmp_path / f"ray {strategy}", name)
            assert len(found) == 3
            assert found == curve(tmp_path / f"torchrun {strategy}", name)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["training.strategy=zero"], "unknown training.strategy 'zero': choose ddp or fsdp"),
        (["training.strategy=fsdp", "training.optimizer=muon"], "add training.optimizer=adamw"),
        (["training.strategy=fsdp", "training.precision=16-mixed"], "bf16-mixed or 32-true"),
        (["training.precision=8"], "unknown training.precision"),
    ],
)
def test_unsupported_settings_are_rejected(
    pools: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        launch(load_config(words(pools, tmp_path, *more)).training)
