"""Between a command and its terminal: what is printed, and failures as one line and an exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from typer import Abort, TyperException

from tfswa_sep.cli.usage_errors import usage_message
from tfswa_sep.errors import DeviceError, OutputError, TfswaError, UsageError, advice

if TYPE_CHECKING:
    from rich.table import Table

PROGRAM = "tfswa-sep"
_WIDEST = 10_000  # characters: wider than any table
# Writes to files fail with an OutputError, so an OSError of these kinds without a file name is stdout's.
_STDOUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as in the shell: 128 + the number of the signal
_PASSWORD = re.compile(r"""(?<=://)[^/\s'"]*@""")
_JOINERS = "\u200c\u200d"  # invisible, but used in Persian words and emoji


class Interrupted(Exception):
    """Ctrl-C, with how to go on; typer takes a KeyboardInterrupt for an exit code."""


class _Terminated(BaseException):
    """SIGTERM. Not an Exception, so that only the removal of temporary files delays it."""


def run(command: Callable[[], Any], *, debug: bool, as_json: bool) -> int:
    """Run `command` and report any failure in one line on stderr.

    Args:
        command: What to run.
        debug: Print the traceback too.
        as_json: Also print the error as a JSON object on stdout.

    Returns:
        The exit code of the process.
    """
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that cannot be encoded must not end the program
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not where Ctrl-C is ignored
        signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, _stop)
    with _native_stderr_silenced(debug=debug):
        return _run(command, debug=debug, as_json=as_json)


def _run(command: Callable[[], Any], *, debug: bool, as_json: bool) -> int:
    try:
        code = command()
        sys.stdout.flush()
        if code != INTERRUPTED:
            return code if isinstance(code, int) else 0
        report = report_error(KeyboardInterrupt())
    except BrokenPipeError:
        return _exit_quietly()
    except SystemExit as stop:  # typer raises it for a broken pipe, and after shell completion
        return _exit_quietly() if isinstance(stop.__context__, BrokenPipeError) else int(stop.code or 0)
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _STDOUT_ERRORS:
            error = OutputError(f"cannot write to stdout ({error.strerror}): {advice(error)}")
            as_json = False
            _discard_stdout()
        report = report_error(error, debug=debug)
    if as_json:
        print(json.dumps({"error": report}), flush=True)
    return int(report["exit_code"])


def report_error(error: BaseException, *, debug: bool = False, trace: str = "") -> dict[str, str | int]:
    """Print an error as one line on stderr.

    Args:
        error: The error.
        debug: Print its traceback first.
        trace: The traceback, if the error comes from another process.

    Returns:
        {"kind", "message", "exit_code"}, for JSON.
    """
    if debug:
        trace = trace or "".join(traceback.format_exception(error))
        print(*map(printable, trace.splitlines()), sep="\n", file=sys.stderr)
    kind, code, message = _describe(error)
    return {"kind": kind, "message": print_error(message), "exit_code": code}


def _describe(error: BaseException) -> tuple[str, int, str]:
    """Kind, exit code and message."""
    kind = type(error).__name__
    if isinstance(error, TfswaError):
        return kind, error.exit_code, str(error)
    if isinstance(error, TyperException):  # an invalid command line
        return UsageError.__name__, UsageError.exit_code, usage_message(error, PROGRAM)
    if isinstance(error, MemoryError):
        advised = "close other programs or use a machine with more memory"
        return kind, DeviceError.exit_code, f"out of memory: {advised}"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return kind, DeviceError.exit_code, f"{os.strerror(error.errno).lower()}: {advice(error)}"
    if isinstance(error, KeyboardInterrupt | Abort):
        return kind, INTERRUPTED, "interrupted; no partial files were left"
    if isinstance(error, Interrupted):
        return "KeyboardInterrupt", INTERRUPTED, f"interrupted; {error}"
    if isinstance(error, _Terminated):
        return "Terminated", TERMINATED, "terminated; no partial files were left"
    return kind, 1, f"bug in {PROGRAM}: please report it with the output of --debug: {kind}: {error}"


def say(text: str = "") -> None:
    """Print a line of results on stdout; on a terminal without the control characters that file names may hold."""
    text = _PASSWORD.sub("***@", text)
    print(printable(text) if sys.stdout.isatty() else text, flush=True)


def print_tables(*tables: Table) -> None:
    """Print tables on stdout; if that is not a terminal, as wide as needed, so that no cell wraps."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.segment import Segment, Segments

    for number, table in enumerate(tables):
        console = Console(width=None if sys.stdout.isatty() else _WIDEST)
        if not sys.stdout.isatty():
            console.width = Measurement.get(console, console.options, table).maximum
        # Names of songs may hold control characters.
        segments = [
            segment
            if segment.control or segment.text == "\n"
            else Segment(printable(segment.text), segment.style)
            for segment in console.render(table)
        ]
        console.print("\n" * (number > 0), Segments(segments), sep="", end="", crop=False)


def print_error(message: str) -> str:
    """Print one line on stderr, whatever line breaks or control characters the message has; return it."""
    line = one_line(message)
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)
    return line


def one_line(text: str) -> str:
    """The printable text, with every run of white space as one space."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """The text with control characters escaped, and without passwords in addresses.

    Escape sequences could alter the terminal; characters that change the direction of writing, a file's name.
    """
    text = _PASSWORD.sub("***@", text)
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else ascii(c)[1:-1] for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _stop(signal_number: int, frame: FrameType | None) -> None:
    """End the command; an import under way ends first, since compiled modules swallow or replace the exception."""
    outer = frame
    while outer:
        if outer.f_code.co_filename == "<frozen importlib._bootstrap>":
            again = threading.Timer(0.02, _send_to_main_thread, [signal_number])
            again.daemon = True
            again.start()
            return
        outer = outer.f_back
    raise KeyboardInterrupt if signal_number == signal.SIGINT else _Terminated


def _send_to_main_thread(signal_number: int) -> None:
    if sys.platform == "win32":
        signal.raise_signal(signal_number)
    else:  # also wakes it
        signal.pthread_kill(threading.main_thread().ident or 0, signal_number)


def _open_standard_streams() -> None:
    """Open file descriptors 0, 1 and 2 if they are closed: otherwise the next opened file would get the number,
    and the output.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


@contextmanager
def _native_stderr_silenced(*, debug: bool) -> Iterator[None]:
    """Silence the complaints that decoders written in C print on stderr, except with `debug`."""
    try:
        ours = sys.stderr.fileno() == 2 and not debug
    except (OSError, ValueError):  # replaced by a test
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
    """The reader of our output has stopped, as `head` does: no error, and Python must not report one at exit."""
    _discard_stdout()
    return BROKEN_PIPE


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
