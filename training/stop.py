"""Signals that ask a run to save and end: SIGTERM, and SIGUSR1, which Slurm can send before a time limit."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Windows has no SIGUSR1.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(Exception):
    """A signal asked a run to end: it has saved its checkpoint, and said so."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


class StopSignals:
    """A context in which these signals do nothing but ask for an end."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def asked(self, fabric: Fabric) -> bool:
        """Whether any process of the run was asked to end. All processes have to call it."""
        received = torch.tensor(float(self.received), device=fabric.device)
        return bool(fabric.all_reduce(received, reduce_op="max"))


def ignore_stop_signals(worker: int) -> None:
    """Let a data worker live on: schedulers signal all processes, and training ends its workers itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
