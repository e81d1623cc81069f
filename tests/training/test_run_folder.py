"""A run's folder: who may write there, what is recorded, and how a run ends when it is asked to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")
pytest.importorskip("lightning_fabric")

from omegaconf import OmegaConf

import tfswa_sep
from tfswa_sep.errors import OutputError, UsageError
from training.configuration import load_config
from training.run import start_processes
from training.run_folder import held
from training.stop import SIGNALS, Stopped
from training.train import train

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests/train_tiny.py"


def words(pools: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.pools={pools}", f"out={out}", "data.mix.seconds=0.3", "training.workers=0",
        "training.threads=1", "training.batch_size=1", "training.accelerator=cpu",
        "training.precision=32-true", "training.log_every=1", "training.warmup_steps=1",
        "training.loss={domain: spectrum, stft: 1.0, sdr: 0.02}", *more,
    ]  # fmt: skip


def start(*runs: list[str], **environment: str) -> subprocess.Popen[str]:
    """A process that trains, and that a group signal reaches with all its workers."""
    return subprocess.Popen(
        [sys.executable, str(TINY), json.dumps(runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_run_s_folder_tells_what_was_run(
    pools: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    last = train(load_config(words(pools, tmp_path, "training.steps=1")))
    train(load_config(words(pools, tmp_path, "training.steps=2", "seed=4")))
    capsys.readouterr()
    assert train(load_config(words(pools, tmp_path, "training.steps=2", "seed=4"))) == last
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "finished at step 2" in said and str(last) in said
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
            load_config(words(pools, tmp_path, "training.steps=2", "seed=4")), resolve=True
        )
    )


def test_two_runs_do_not_write_into_one_folder(pools: Path, tmp_path: Path, tiny: None) -> None:
    config = load_config(words(pools, tmp_path, "training.steps=1"))
    with (
        held(tmp_path, start_processes(config)),
        pytest.raises(UsageError, match=r"another run is writing to .*: wait until it ends, or choose"),
    ):
        train(config)
    train(config)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        train(load_config(words(pools, tmp_path / "file/out", "training.steps=1")))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_ends_a_run_which_then_goes_on(
    number: signal.Signals, pools: Path, tmp_path: Path
) -> None:
    """As Slurm sends it: to all processes of a job step, the data workers among them."""
    line = words(
        pools, tmp_path, "training.steps=100000", "training.save_every=100000",
        "training.validate_every=100000", "training.workers=1",
    )  # fmt: skip
    steps = []
    for _ in range(2):
        with start(line) as process:
            assert process.stdout is not None and process.stderr is not None
            for said in process.stdout:
                if said.startswith("step "):
                    os.killpg(process.pid, number)
                    break
            rest, errors = process.stdout.read(), process.stderr.read()
        assert process.returncode == Stopped.exit_code == 75, errors[-3000:]
        assert "stopped by a signal and saved; run the same command" in rest and "Traceback" not in errors
        steps.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["step"])
    assert 1 <= steps[0] < steps[1]
    assert [entry["step"] for entry in json.loads((tmp_path / "run.json").read_text())] == [0, steps[0]]


def slurm(process: int, **changes: str) -> dict[str, str]:
    """What srun sets for one of two tasks on one node."""
    return {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process), "SLURM_JOB_ID": str(os.getpid()), "SLURM_NODELIST": "localhost",
    } | changes  # fmt: skip


@pytest.mark.slow
def test_tasks_of_srun_are_processes_of_one_run(pools: Path, tmp_path: Path) -> None:
    line = words(pools, tmp_path, "training.steps=2")
    tasks = [start(line, **slurm(process)) for process in range(2)]
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "step 2 loss" in said[0][0] and "step" not in said[1][0]  # one of them speaks
    (entry,) = json.loads((tmp_path / "run.json").read_text())
    assert entry["processes"] == 2


def test_tasks_of_srun_must_be_spread_evenly(
    pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(words(pools, tmp_path))
    for name, value in slurm(0, SLURM_NTASKS_PER_NODE="8").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"srun started 2 tasks on 1 nodes: pass .*--ntasks-per-node"):
        start_processes(config)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UsageError, match="--ntasks-per-node"):
        start_processes(config)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")  # the job's script itself, which srun did not start
    assert start_processes(config).world_size == 1
