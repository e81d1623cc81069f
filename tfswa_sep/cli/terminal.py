"""Between a command and its terminal: progress, warnings, and failures as one line and an exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from typer import Abort, TyperException

from tfswa_sep.errors import DeviceError, OutputError, TfswaError, UsageError

if TYPE_CHECKING:
    from rich.progress import TaskID

PROGRAM = "tfswa-sep"
# A write that fails so is one to stdout: all others have been made an OutputError.
_STDOUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as the shell has it: 128 + the signal's number


class _Terminated(BaseException):
    """SIGTERM came. No Exception: only the clean-up of temporary files stands in its way."""


def run(command: Callable[[], Any], *, debug: bool, as_json: bool) -> int:
    """Run `command` and return the process's exit code; whatever goes wrong is told in one line on stderr.

    debug: show the traceback too.  as_json: also print the error as a JSON object on stdout.
    """
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that is no text must not end the program
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, _terminate)
    with _native_stderr_silenced(debug=debug):
        return _run(command, debug=debug, as_json=as_json)


def _run(command: Callable[[], Any], *, debug: bool, as_json: bool) -> int:
    try:
        code = command()
        sys.stdout.flush()
        if code == INTERRUPTED:
            print_error("interrupted; no partial files were left")
        return code if isinstance(code, int) else 0
    except _Terminated:
        print_error("terminated; no partial files were left")
        return TERMINATED
    except BrokenPipeError:
        return _exit_quietly()
    except SystemExit as stop:  # typer's way to say that the pipe broke, and the end of shell completion
        return _exit_quietly() if isinstance(stop.__context__, BrokenPipeError) else int(stop.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _STDOUT_ERRORS:
            error = OutputError(f"cannot write to stdout ({error.strerror}): free some disk space")
            as_json = False
            _discard_stdout()
        told = report(error, debug=debug)
        if as_json:
            print(json.dumps({"error": told}))
        return int(told["exit_code"])


def report(error: BaseException, *, debug: bool = False, trace: str = "") -> dict[str, str | int]:
    """Say an error in one line on stderr, and return it as {"kind", "message", "exit_code"}."""
    kind, code, message = type(error).__name__, 1, str(error)
    if isinstance(error, TfswaError):
        code = error.exit_code
    elif isinstance(error, TyperException):  # a command line that makes no sense
        kind, code, message = UsageError.__name__, UsageError.exit_code, error.format_message()
        message = f"{message.rstrip('.')} (see {PROGRAM} --help)"
    elif isinstance(error, MemoryError):
        code, message = (
            DeviceError.exit_code,
            "out of memory: close other programs or use a machine with more memory",
        )
    elif isinstance(error, KeyboardInterrupt | Abort):
        code, message = INTERRUPTED, "interrupted"
    else:
        message = f"bug in {PROGRAM}: please report it with the output of --debug: {kind}: {message}"
    if debug and trace:  # of another process
        print(trace, file=sys.stderr, end="")
    elif debug:
        traceback.print_exception(error)
    return {"kind": kind, "message": print_error(message), "exit_code": code}


def print_error(message: str) -> str:
    """Print one line on stderr, whatever line breaks or control characters the message has; return it."""
    line = one_line(message)
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)
    return line


def one_line(text: str) -> str:
    """The text without line breaks, and with what cannot be printed written out."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[ProgressBars | None]:
    """Bars with the time left on stderr; None if not `shown` or where stderr is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    bars = ProgressBars()
    try:
        yield bars
    finally:
        bars.stop()


class ProgressBars:
    """A bar for each song that is being separated: its name, the stage, and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        stage = TextColumn("{task.fields[stage]}", table_column=Column(width=10))
        columns = (name, stage, BarColumn(bar_width=20), TimeRemainingColumn())
        # Not redirected: what is printed to stdout may be meant for another program.
        options = {"transient": True, "redirect_stdout": False, "redirect_stderr": False, "expand": True}
        self._bars = Progress(*columns, console=Console(stderr=True), **options)  # type: ignore[arg-type]
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def update(self, label: str, done: float, total: float | None) -> None:
        """Show how many seconds of the song `label` are done, and of how many, None where unknown."""
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total, stage="")
        stage = "writing" if total and done >= total else "separating" if done else "reading"
        self._bars.update(self._tasks[label], completed=done, total=total, stage=stage)

    def remove(self, label: str) -> None:
        """The song `label` is done."""
        if label in self._tasks:
            self._bars.remove_task(self._tasks.pop(label))

    @contextmanager
    def away(self) -> Iterator[None]:
        """No bar is on the screen meanwhile, so that lines can be printed."""
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()

    def stop(self) -> None:
        """Take all bars away."""
        self._bars.stop()


def _terminate(signal_number: int, frame: object) -> NoReturn:
    raise _Terminated


def _open_standard_streams() -> None:
    """Have 0, 1 and 2 be something: else the next file that is opened becomes one, and is printed to."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


@contextmanager
def _native_stderr_silenced(*, debug: bool) -> Iterator[None]:
    """Keep decoders written in C from talking to stderr about a file's faults; with `debug` they may."""
    try:
        ours = sys.stderr.fileno() == 2 and not debug
    except (OSError, ValueError):  # a test has put something else in its place
        ours = False
    if not ours:
        yield
        return
    before, kept = sys.stderr, os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = os.fdopen(kept, "w", buffering=1, encoding=before.encoding, errors="backslashreplace")
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        sys.stderr.close()
        sys.stderr = before


def _exit_quietly() -> int:
    """Who read our output has stopped, as `head` does: no error, nor may Python find one as it exits."""
    _discard_stdout()
    return BROKEN_PIPE


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
