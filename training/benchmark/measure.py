"""Run a command as a process of its own, and say what it cost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import psutil

BUSY_CORES = 0.3  # other work above which timings are not to be trusted
_LOOK_EVERY = 0.2  # seconds between two looks at a process tree; each costs about 5 ms


class FailedCommandError(Exception):
    """A command ended with an error: its last words."""


@dataclass(frozen=True)
class Run:
    """One process from start to end, with all that it started."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, all threads
    memory: int  # bytes, highest resident; at least this benchmark's own, which the kernel counts before exec


def measure(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end.

    Memory is that of the whole process tree, looked at a few times a second, or the kernel's exact figure for
    its largest process, whichever is more.  environment: what is added to this process's own.
    Raises FailedCommandError with its last words if it fails.
    """
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = _start(command, environment, said)
        with _watched_memory(process.pid) as peak:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        _check(process, said)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    memory = max(usage.ru_maxrss * unit, *peak)
    return Run(wall=wall, cpu=usage.ru_utime + usage.ru_stime, memory=memory)


def seconds_to_first_line(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> float:
    """Seconds from a command's start to the first line that it prints; it is then waited for.

    Raises FailedCommandError if it prints none or fails.
    """
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = _start(command, environment, said, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
            seconds = time.perf_counter() - started
            process.stdout.read()
        process.wait()
        if not line:
            process.returncode = process.returncode or 1
        _check(process, said)
    return seconds


def busy_cores(seconds: float = 0.5) -> float:
    """How many cores other work keeps busy now, on average over some seconds."""
    return psutil.cpu_percent(interval=seconds) / 100 * (psutil.cpu_count() or 1)


def _start(
    command: Sequence[str],
    environment: Mapping[str, str] | None,
    said: IO[bytes],
    *,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=said if stdout is None else stdout,
        stderr=said,
        env={**os.environ, **(environment or {})},
    )


def _check(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    if process.returncode:
        said.seek(0)
        last = said.read().decode(errors="replace").strip()[-500:]
        raise FailedCommandError(f"ended with {process.returncode}: {last}")


@contextlib.contextmanager
def _watched_memory(pid: int) -> Iterator[list[int]]:
    """A list whose one number grows to the most bytes that a process and its descendants held at once."""
    peak, ended = [0], threading.Event()

    def look() -> None:
        with contextlib.suppress(psutil.Error):  # it has ended
            root = psutil.Process(pid)
            while not ended.wait(_LOOK_EVERY):
                held = 0
                for process in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        held += process.memory_info().rss
                peak[0] = max(peak[0], held)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
