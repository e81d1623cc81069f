"""Training in processes of its own, forked from one that has imported everything: an import takes many seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import pytest
from tiny_model import TINY

from tfswa_sep.model.config import PRESETS

ROOT = Path(__file__).resolve().parents[1]
if "forkserver" not in multiprocessing.get_all_start_methods():
    pytest.skip("needs forks", allow_module_level=True)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["training.train", "torch.distributed.launcher.api"])


class TrainingProcess:
    """`training.train` on as little network as there can be, in a session of its own, as from a shell.

    Args:
        runs: Command lines, each a list of words; the runs follow one another.
        tiny: Whether `small` is the tiny network; else the presets stay what they are.
        torchrun: Whether two processes train, as `torchrun --standalone --nproc-per-node=2` starts them.
        environment: Changes to the environment.
    """

    def __init__(
        self,
        *runs: list[str],
        tiny: bool = True,
        torchrun: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        target = _launch_two if torchrun else _train
        with pytest.MonkeyPatch.context() as patch:  # for the process that all are forked from
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.setenv("OMP_NUM_THREADS", "1")
            self.process = CONTEXT.Process(
                target=_start, args=(writer, {**os.environ, **environment}, target, list(runs), tiny)
            )
            self.process.start()
        writer.close()
        self.output = open(os.dup(reader.fileno()), encoding="utf-8")  # stdout and stderr  # noqa: SIM115
        reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            self.process.kill()
        self.output.close()
        self.process.join()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the training. It must have printed something."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, number)

    @property
    def exit_code(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it."""
        return self.process.exitcode


def _start(
    output: Connection,
    environment: Mapping[str, str],
    target: Callable[[list[list[str]], bool], None],
    runs: list[list[str]],
    tiny: bool,
) -> None:
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    target(runs, tiny)


def _launch_two(runs: list[list[str]], tiny: bool) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, _train)(runs, tiny)


def _train(runs: list[list[str]], tiny: bool) -> None:
    from training.configuration import load_config
    from training.stop import Stopped
    from training.train import train

    if tiny:
        PRESETS["small"] = TINY
    try:
        for words in runs:
            train(load_config(words))
    except Stopped as stopped:  # as `run_command` does
        sys.exit(stopped.exit_code)
