"""Run a command in its own process, and measure its time and memory."""

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

BUSY_CORES = 0.3  # with more cores busy, timings are unreliable
_POLL_SECONDS = 0.2  # between two polls of the process tree, which take about 5 ms each


class FailedCommandError(Exception):
    """A command failed; the message has its exit code and last output."""


@dataclass(frozen=True)
class Run:
    """The resources used by one process and its descendants."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, all threads
    memory: (
        int  # bytes, peak resident; at least that of this benchmark, since the kernel counts from the fork
    )


def measure(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to completion.

    The memory is that of the whole process tree, polled a few times per second, or the kernel's exact figure for
    its largest process if that is more. `environment` is added to the current one.

    Raises:
        FailedCommandError: The command failed.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = _start(command, environment, output)
        with _poll_memory(process.pid) as peak:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        _check(process, output)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    memory = max(usage.ru_maxrss * unit, *peak)
    return Run(wall=wall, cpu=usage.ru_utime + usage.ru_stime, memory=memory)


def seconds_to_first_line(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> float:
    """Measure the seconds from a command's start to its first line of output, and let it finish.

    Raises:
        FailedCommandError: The command failed or printed nothing.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = _start(command, environment, output, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
            seconds = time.perf_counter() - started
            process.stdout.read()
        process.wait()
        if not line:
            process.returncode = process.returncode or 1
        _check(process, output)
    return seconds


def busy_cores(seconds: float = 0.5) -> float:
    """Return how many cores are busy, averaged over some seconds."""
    return psutil.cpu_percent(interval=seconds) / 100 * (psutil.cpu_count() or 1)


def _start(
    command: Sequence[str],
    environment: Mapping[str, str] | None,
    output: IO[bytes],
    *,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output if stdout is None else stdout,
        stderr=output,
        env={**os.environ, **(environment or {})},
    )


def _check(process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    if process.returncode:
        output.seek(0)
        last = output.read().decode(errors="replace").strip()[-500:]
        raise FailedCommandError(f"exit code {process.returncode}: {last}")


@contextlib.contextmanager
def _poll_memory(pid: int) -> Iterator[list[int]]:
    """Yield a list of one number: the peak memory in bytes of a process and its descendants so far."""
    peak, ended = [0], threading.Event()

    def poll() -> None:
        with contextlib.suppress(psutil.Error):  # the process has ended
            root = psutil.Process(pid)
            while not ended.wait(_POLL_SECONDS):
                total = 0
                for process in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_info().rss
                peak[0] = max(peak[0], total)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
