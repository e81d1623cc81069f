"""Run ffmpeg, and kill it if it hangs: on a network drive that is gone, or because of a fault of its own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

_PROC = Path("/proc")
# Seconds. Longer where activity cannot be seen, so that a slow process is not killed.
PATIENCE = 60.0 if (_PROC / "self/io").exists() else 600.0


class FfmpegProcess:
    """A process that reads from or writes to pipes; a context manager, whose end kills it.

    It hangs if it uses no CPU time and reads or writes no byte for PATIENCE seconds while something waits for it. It is
    then killed, and the call that waits raises OSError.

    Args:
        command: The program and its arguments.
        stdin: Whether `write` will be called.
        stdout: Whether `read` will be called.

    Raises:
        OSError: It cannot be run.
    """

    def __init__(self, command: Sequence[str], *, stdin: bool = False, stdout: bool = False) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  # a file, no pipe: it cannot fill up and block
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
                stderr=self._messages,
            )
        except BaseException:
            self._messages.close()
            raise
        self._calls = 0  # odd while something waits for the process
        self._hangs = False
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="tfswa-sep-ffmpeg", daemon=True).start()

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes of its output, fewer at the end."""
        assert self._process.stdout is not None
        with self._waiting():
            data = self._process.stdout.read(size)
        self._check()
        return data

    def write(self, data: memoryview) -> None:
        """Send it input. Raises BrokenPipeError if it reads no more."""
        assert self._process.stdin is not None
        with self._waiting():
            try:
                self._process.stdin.write(data)
            except BrokenPipeError:
                self._check()
                raise

    def end_input(self) -> None:
        """Send what is left of its input, and its end. Raises BrokenPipeError as `write` does."""
        assert self._process.stdin is not None
        with self._waiting():
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                self._check()
                raise

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        with self._waiting():
            code = self._process.wait()
        self._check()
        return code

    def messages(self) -> str:
        """What it has written to stderr so far."""
        self._messages.seek(0)
        return self._messages.read().decode("utf-8", errors="replace")

    def close(self) -> None:
        """Kill it if it runs, and close its pipes."""
        self._ended.set()
        if self._process.poll() is None:
            self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        self._messages.close()

    def __enter__(self) -> FfmpegProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls += 1

    def _check(self) -> None:
        if self._hangs:
            raise OSError(errno.ETIMEDOUT, f"ffmpeg did nothing for {PATIENCE:g} s")

    def _watch(self) -> None:
        """Kill the process when it hangs."""
        step = PATIENCE / 20
        idle, seen = 0.0, None
        while not self._ended.wait(step) and self._process.poll() is None:
            family = _family(self._process.pid)
            now = (self._calls, [_activity(pid) for pid in family])
            idle = idle + step if now == seen and self._calls % 2 else 0.0
            seen = now
            if idle >= PATIENCE:
                self._hangs = True
                self._kill()
                return

    def _kill(self) -> None:
        started = _family(self._process.pid)[1:]
        self._process.kill()
        for pid in started:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _family(pid: int) -> list[int]:
    """A process and those that it started: `ffmpeg` can be a script that runs another program."""
    found = [pid]
    with suppress(OSError):
        for child in (_PROC / f"{pid}/task/{pid}/children").read_text().split():
            found += _family(int(child))
    return found


def _activity(pid: int) -> tuple[str, ...]:
    """CPU time and the number of bytes read and written by a process; () where that cannot be known."""
    with suppress(OSError):
        times = (_PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        moved = (_PROC / f"{pid}/io").read_text().splitlines()[:2]
        return times[11], times[12], *moved
    return ()
