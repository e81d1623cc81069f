"""A run's folder: its lock, its record of starts, and stopping by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from train_process import TrainingProcess

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")
pytest.importorskip("lightning_fabric")

from omegaconf import OmegaConf

import tfswa_sep
from tfswa_sep.errors import OutputError, UsageError
from training.configuration import load_config
from training.run import start_processes
from training.run_folder import lock_folder
from training.stop import SIGNALS, Stopped, StopSignals
from training.train import train

ROOT = Path(__file__).resolve().parents[2]


def overrides(pools: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.pools={pools}", f"out={out}", "data.mix.seconds=0.3", "training.workers=0",
        "training.threads=1", "training.batch_size=1", "training.accelerator=cpu",
        "training.precision=32-true", "training.log_every=1", "training.warmup_steps=1",
        "training.loss={domain: spectrum, stft: 1.0, sdr: 0.02}", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_every_start_is_recorded(
    pools: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    last = train(load_config(overrides(pools, tmp_path, "training.steps=1")))
    train(load_config(overrides(pools, tmp_path, "training.steps=2", "seed=4")))
    capsys.readouterr()
    assert train(load_config(overrides(pools, tmp_path, "training.steps=2", "seed=4"))) == last
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and "finished at step 2" in output and str(last) in output
    first, second = json.loads((tmp_path / "run.json").read_text())  # the third did nothing
    assert (first["step"], second["step"]) == (0, 1)
    assert first["changed_settings"] == {}
    assert second["changed_settings"] == {"seed": [0, 4], "training.steps": [1, 2]}
    assert first["versions"]["tfswa-sep"] == tfswa_sep.__version__
    assert first["versions"]["torch"] == torch.__version__
    assert "pytest" in first["command"] or "xdist" in first["command"] or "-c" in first["command"]
    if (ROOT / ".git").exists():
        git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        assert first["commit"] == subprocess.check_output(git, text=True).strip()
        assert isinstance(first["uncommitted_changes"], bool)
    written = OmegaConf.load(tmp_path / "config.yaml")
    assert written == OmegaConf.create(
        OmegaConf.to_container(
            load_config(overrides(pools, tmp_path, "training.steps=2", "seed=4")), resolve=True
        )
    )


def test_two_runs_cannot_write_to_one_folder(pools: Path, tmp_path: Path, tiny: None) -> None:
    config = load_config(overrides(pools, tmp_path, "training.steps=1"))
    with (
        lock_folder(tmp_path, start_processes(config)),
        pytest.raises(UsageError, match=r"another run is writing to .*: wait until it ends, or choose"),
    ):
        train(config)
    train(config)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to"):
        train(load_config(overrides(pools, tmp_path / "file/out", "training.steps=1")))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
@pytest.mark.slow
@pytest.mark.longest
def test_a_run_stopped_by_a_signal_resumes(pools: Path, tmp_path: Path) -> None:
    """Slurm signals all processes of a job step, including data workers. Each start is stopped by another signal."""
    arguments = overrides(
        pools, tmp_path, "training.steps=100000", "training.save_every=100000",
        "training.validate_every=100000", "training.workers=1",
    )  # fmt: skip
    steps = []
    for number in SIGNALS:
        with TrainingProcess(arguments) as training:
            for line in training.output:
                if line.startswith("step "):
                    training.send_signal(number)
                    break
            rest = training.output.read()
        assert training.exit_code == Stopped.exit_code == 75, rest[-3000:]
        assert "stopped by a signal and saved; run the same command" in rest and "Traceback" not in rest
        steps.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["step"])
    assert 1 <= steps[0] < steps[1]
    assert [entry["step"] for entry in json.loads((tmp_path / "run.json").read_text())] == [0, steps[0]]


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    """Ray Train calls the training in a thread, where no signal handler can be set."""
    before = [signal.getsignal(number) for number in SIGNALS]

    def inside() -> list[object]:
        with StopSignals():
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == before


def slurm(process: int, **changes: str) -> dict[str, str]:
    """The variables that srun sets for one of two tasks on one node."""
    return {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process), "SLURM_JOB_ID": str(os.getpid()), "SLURM_NODELIST": "localhost",
    } | changes  # fmt: skip


@pytest.mark.slow
def test_srun_tasks_form_one_run(pools: Path, tmp_path: Path) -> None:
    arguments = overrides(pools, tmp_path, "training.steps=2")
    with (
        TrainingProcess(arguments, environment=slurm(0)) as first,
        TrainingProcess(arguments, environment=slurm(1)) as second,
    ):
        outputs = [task.output.read() for task in (first, second)]
    assert [task.exit_code for task in (first, second)] == [0, 0], outputs
    assert "step 2 loss" in outputs[0] and "step" not in outputs[1]  # only one process logs
    (entry,) = json.loads((tmp_path / "run.json").read_text())
    assert entry["processes"] == 2


def test_srun_tasks_must_be_spread_evenly(
    pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(overrides(pools, tmp_path))
    for name, value in slurm(0, SLURM_NTASKS_PER_NODE="8").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"srun started 2 tasks on 1 nodes: pass .*--ntasks-per-node"):
        start_processes(config)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UsageError, match="--ntasks-per-node"):
        start_processes(config)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")  # the job's script itself, which srun did not start
    assert start_processes(config).world_size == 1
