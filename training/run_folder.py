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

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def lock_folder(out: Path, fabric: Fabric) -> Iterator[None]:
    """Create a run's folder if necessary, and lock out other runs. Every process must call this.

    Raises:
        UsageError: Another run holds the lock.
        OutputError: The folder cannot be written to.
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
            problem = OutputError(f"cannot write to {out}: {error.strerror or error}")
    problem = fabric.broadcast(problem)  # otherwise the other processes would wait for the first
    if problem:
        raise problem
    try:
        yield
    finally:
        lock.release()


def record_start(out: Path, config: DictConfig, *, step: int, fabric: Fabric) -> None:
    """Write config.yaml, and append this start to run.json: step, command, versions, changed settings."""
    if not fabric.is_global_zero:
        return
    record_path, config_path = out / "run.json", out / "config.yaml"
    starts = json.loads(record_path.read_text()) if record_path.exists() else []
    before = _settings(OmegaConf.load(config_path)) if starts and config_path.exists() else {}
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
    with atomic_write(config_path) as temporary:
        OmegaConf.save(config, temporary, resolve=True)
    with atomic_write(record_path) as temporary:
        temporary.write_text(json.dumps(starts, indent=2) + "\n")


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration: {"training.steps": 2000, ...}."""
    node: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if not isinstance(node, dict):
        return {prefix: node}
    parts = (_settings(value, f"{prefix}.{key}" if prefix else key) for key, value in node.items())
    return {key: value for part in parts for key, value in part.items()}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    """{setting: [value before, value after]}, None for a missing one"""
    keys = sorted(before.keys() | after.keys())
    return {key: [before.get(key), after.get(key)] for key in keys if before.get(key) != after.get(key)}


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit and whether there are uncommitted changes; (None, None) without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit.removesuffix("-dirty"), commit.endswith("-dirty")


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
