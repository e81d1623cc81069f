"""Between a command and its terminal: progress, warnings, and failures as one line and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from typer import Abort, TyperException

from tfswa_sep.errors import DeviceError, TfswaError, UsageError

PROGRAM = "tfswa-sep"
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as the shell has it: 128 + the signal's number


class _Terminated(BaseException):
    """SIGTERM came. No Exception: only the clean-up of temporary files stands in its way."""


def run(command: Callable[[], Any], *, debug: bool, as_json: bool) -> int:
    """Run `command` and return the process's exit code; whatever goes wrong is told in one line on stderr.

    debug: show the traceback too.  as_json: also print the error as a JSON object on stdout.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that is no text must not end the program
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = command()
        sys.stdout.flush()
        if code == INTERRUPTED:
            say_error("interrupted; the song that was being separated left no files")
        return code if isinstance(code, int) else 0
    except _Terminated:
        say_error("terminated; the song that was being separated left no files")
        return TERMINATED
    except BrokenPipeError:
        return _leave_quietly()
    except SystemExit as stop:  # typer's way to say that the pipe broke, and the end of shell completion
        return _leave_quietly() if isinstance(stop.__context__, BrokenPipeError) else int(stop.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        told = report(error, debug=debug)
        if as_json:
            print(json.dumps({"error": told}, indent=2))
        return int(told["exit_code"])


def report(error: BaseException, *, debug: bool = False) -> dict[str, str | int]:
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
            "out of memory: close other programs, or take a machine with more",
        )
    elif isinstance(error, KeyboardInterrupt | Abort):
        code, message = INTERRUPTED, "interrupted"
    else:
        message = f"a bug of {PROGRAM}, please report it with what --debug shows: {kind}: {message}"
    if debug:
        traceback.print_exception(error)
    return {"kind": kind, "message": say_error(message), "exit_code": code}


def say_error(message: str) -> str:
    """Print one line on stderr, whatever line breaks or control characters the message has; return it."""
    words = " ".join(message.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)
    return line


@contextmanager
def progress_bar(label: str, *, shown: bool) -> Iterator[Callable[[float, float | None], None] | None]:
    """A bar with the time left on stderr, gone when done; yields its on_progress(seconds done, in all).

    Nothing is drawn, and None yielded, if not `shown` or where stderr is no terminal.
    """
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)

        def show(done: float, total: float | None) -> None:
            bars.update(task, completed=done, total=total)

        yield show


def _terminate(signal_number: int, frame: object) -> NoReturn:
    raise _Terminated


def _leave_quietly() -> int:
    """Who read our output has stopped, as `head` does: no error, nor may Python find one as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
