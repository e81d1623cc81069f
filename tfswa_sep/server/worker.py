"""What runs in a worker process: separate one song after another, and report to the server.

A decoder that crashes takes only this process with it. If the server dies, the connection breaks and the process
ends, after it has removed its unfinished files.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfswa_sep.errors import InputError, OutputError, TfswaError, TruncatedError
from tfswa_sep.options import OutputOptions, Runtime

if TYPE_CHECKING:
    from tfswa_sep.separator import Separator

_REPORT_SECONDS = 0.1  # between two reports of progress
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Task:
    """A song for a worker. Can be sent to another process."""

    song: Path
    name: str  # in messages
    folder: Path  # for the stems: STEM.wav
    model: str
    stems: tuple[str, ...]  # () for all of the model's
    max_minutes: float
    room: float  # bytes that the stems may take


def run(connection: Connection, runtime: Runtime, model: str) -> None:
    """Load a model and separate the songs that arrive, until the connection is closed.

    Sent for each song: ("started", {stem: growing file}, rate in Hz, channels, seconds or None), then
    ("progress", seconds), and at the end ("done", {...}) or ("failed", {"kind", "message"}).

    Args:
        connection: Brings each Task and takes the reports.
        runtime: How models run.
        model: The one to load in advance.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the server ends this process
    signal.signal(signal.SIGTERM, _terminate)
    _silence()
    loaded: dict[str, Separator] = {}
    with suppress(Exception):  # the first task reports it
        _ = _load(loaded, model, runtime).backend
    try:
        while True:
            task: Task = connection.recv()
            try:
                connection.send(("done", _separate(connection, task, _load(loaded, task.model, runtime))))
            except (BrokenPipeError, EOFError):
                raise
            except Exception as error:
                for each in (error, error.__cause__):  # else their frames keep the song's samples in memory
                    if each is not None:
                        traceback.clear_frames(each.__traceback__)
                connection.send(("failed", describe(error, task)))
    except (EOFError, ConnectionError):
        return


def describe(error: BaseException, task: Task) -> dict[str, str]:
    """An error as {"kind", "message"}, without any path of the server."""
    kind = type(error).__name__
    message = str(error)
    if isinstance(error, MemoryError):
        message = "out of memory"
    elif not isinstance(error, TfswaError):
        message = f"bug in tfswa-sep: {kind}: {message}"
    message = message.replace(str(task.song), task.name)
    for folder in (task.folder, task.song.parent):
        message = message.replace(f"{folder}{os.sep}", "").replace(str(folder), "the server's folder")
    return {"kind": kind, "message": message}


def _separate(connection: Connection, task: Task, separator: Separator) -> dict[str, Any]:
    """Separate a song into task.folder; of a truncated one, what can be read."""
    try:
        return _separate_once(connection, task, separator, allow_truncated=False)
    except TruncatedError:
        return _separate_once(connection, task, separator, allow_truncated=True)


def _separate_once(
    connection: Connection, task: Task, separator: Separator, *, allow_truncated: bool
) -> dict[str, Any]:
    from tfswa_sep.audio.decode import open_audio

    with open_audio(task.song, downmix=True, allow_truncated=allow_truncated) as song:
        rate, channels, frames = song.sample_rate, song.channels, song.frames
    stems = task.stems or separator.stems
    longest = task.room / (len(stems) * rate * channels * _FLOAT_BYTES)  # seconds
    reported = 0.0

    def check(seconds: float) -> None:
        if seconds > task.max_minutes * 60:
            raise InputError(f"{task.name} is longer than {task.max_minutes:g} minutes, the limit here")
        if seconds > longest:
            raise OutputError(
                f"the stems of {task.name} do not fit within the server's disk quota: delete songs"
            )

    def start(files: Mapping[str, Path]) -> None:
        growing = {stem: str(path) for stem, path in files.items()}
        connection.send(("started", growing, rate, channels, None if frames is None else frames / rate))

    def report(seconds: float, total: float | None) -> None:
        nonlocal reported
        check(seconds)
        now = time.monotonic()
        if now - reported >= _REPORT_SECONDS:
            reported = now
            connection.send(("progress", seconds))

    check(0 if frames is None else frames / rate)
    result = separator.separate_file(
        task.song,
        OutputOptions(
            stems=list(task.stems) or None,
            out=task.folder,
            name="{stem}{ext}",
            downmix=True,
            allow_truncated=allow_truncated,
        ),
        on_start=start,
        on_progress=report,
    )
    return {
        "seconds": result.seconds,
        "sample_rate": result.sample_rate,
        "channels": channels,
        "made": tuple(result.files),
        "warnings": tuple(text.replace(str(task.song), task.name) for text in result.warnings),
    }


def _load(loaded: dict[str, Separator], model: str, runtime: Runtime) -> Separator:
    from tfswa_sep.separator import Separator

    if model not in loaded:
        loaded.clear()  # one model at a time in memory
        loaded[model] = Separator(model or None, runtime=runtime)
    return loaded[model]


def _terminate(signal_number: int, frame: object) -> None:
    raise SystemExit(128 + signal_number)


def _silence() -> None:
    """Discard what decoders written in C print."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
