"""Stop a run by a signal: SIGTERM, or SIGUSR1, which Slurm can send before a time limit."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Windows has no SIGUSR1.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(Exception):
    """A signal ended a run, which has saved a checkpoint."""

    exit_code = 75  # EX_TEMPFAIL in sysexits.h: try again later


class StopSignals(ExitStack):
    """A context that records SIGNALS instead of letting them end the process.

    Only the main thread can do this: in another one, as in a worker of Ray Train, signals are left alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received = False
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            self.callback(signal.signal, number, signal.signal(number, self._receive))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def any_received(self, fabric: Fabric) -> bool:
        """Return whether any process of the run received a signal. Every process must call this."""
        received = torch.tensor(float(self.received), device=fabric.device)
        return bool(fabric.all_reduce(received, reduce_op="max"))


def ignore_stop_signals(worker: int) -> None:
    """Set up a data worker: schedulers signal every process, but the run ends its workers itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
