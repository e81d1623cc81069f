"""The files of a run besides checkpoints: a lock, the configuration, and a record of every start."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf

import tfswa_sep
from tfswa_sep.audio.atomic_file import atomic_write
from tfswa_sep.errors import OutputError, TfswaError, UsageError
from tfswa_sep.evaluation.provenance import machine

SOURCE = Path(__file__).resolve().parents[1]


@contextmanager
def held(out: Path, fabric: Fabric) -> Iterator[None]:
    """Make a folder if it is missing, and keep other runs out of it. All processes have to call it.

    Raises UsageError where another run is writing, OutputError where this one cannot.
    """
    lock = FileLock(out / ".lock")
    problem: TfswaError | None = None
    if fabric.is_global_zero:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            problem = UsageError(
                f"another run is writing to {out}: wait until it ends, or choose another out=..."
            )
        except OSError as error:
            problem = OutputError(f"{out} cannot be written: {error.strerror or error}")
    problem = fabric.broadcast(problem)  # otherwise the other processes would wait for the first
    if problem:
        raise problem
    try:
        yield
    finally:
        lock.release()


def record_start(out: Path, config: DictConfig, *, step: int, fabric: Fabric) -> None:
    """Write config.yaml, and add a start at `step` to run.json with what it ran on and which settings changed."""
    if not fabric.is_global_zero:
        return
    record, written = out / "run.json", out / "config.yaml"
    starts = json.loads(record.read_text()) if record.exists() else []
    before = _settings(OmegaConf.load(written)) if starts and written.exists() else {}
    commit, dirty = _commit()
    starts.append({
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join(sys.orig_argv),
        "changed_settings": _changes(before, _settings(config)) if before else {},
        "commit": commit,
        "uncommitted_changes": dirty,
        "versions": {
            "tfswa-sep": tfswa_sep.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": machine(),
        "device": _device(fabric.device),
        "processes": fabric.world_size,
    })  # fmt: skip
    with atomic_write(written) as temporary:
        OmegaConf.save(config, temporary, resolve=True)
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps(starts, indent=2) + "\n")


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"training.steps": 2000, ...}"""
    node: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if not isinstance(node, dict):
        return {prefix: node}
    parts = (_settings(value, f"{prefix}.{key}" if prefix else key) for key, value in node.items())
    return {key: value for part in parts for key, value in part.items()}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    """{setting: [value before, value after]}; null where there was or is none"""
    both = sorted(before.keys() | after.keys())
    return {key: [before.get(key), after.get(key)] for key in both if before.get(key) != after.get(key)}


def _commit() -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether files differ from it; (None, None) where there is no git."""
    command = ["git", "-C", str(SOURCE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None, None
    return found.removesuffix("-dirty"), found.endswith("-dirty")


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
