"""A batch on one or several processes, each of which takes the next song when it has finished one.

If a process dies, killed or crashed in a decoder, only its song fails.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tfswa_sep.audio.atomic_file import remove_abandoned_below
from tfswa_sep.batch.plan import Outcome, PlannedSong, Work
from tfswa_sep.errors import DeviceError, ModelError, TfswaError, UsageError
from tfswa_sep.inference.hardware import count_cores

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

# (song, seconds done, seconds in all or None where unknown)
SongProgress = Callable[[PlannedSong, float, float | None], None]
FATAL_ERRORS = (UsageError, ModelError, DeviceError, MemoryError)
_PATIENCE = 10.0  # seconds for a process to remove its temporary files


def threads_per_job(jobs: int) -> int | None:
    """CPU threads per job, so that all jobs together use every core once; None: the backend decides."""
    return max(1, (count_cores() or os.cpu_count() or 1) // jobs) if jobs > 1 else None


def run_songs(
    songs: Sequence[PlannedSong],
    work: Work,
    *,
    check: Callable[[PlannedSong], object],
    jobs: int = 1,
    on_progress: SongProgress | None = None,
) -> Iterator[Outcome]:
    """Separate songs, and yield the outcome of each as it is done; with several jobs in any order.

    Args:
        songs: The songs.
        work: How they are separated.
        check: Called for each song before its turn; raises a TfswaError if it cannot be separated.
        jobs: Processes.
        on_progress: Called with the progress of each song.

    Raises:
        TfswaError: An error that would affect every other song too, such as a missing device.
    """
    if min(jobs, len(songs)) > 1:
        outcomes = _run_in_processes(songs, work, check, jobs, on_progress)
    else:
        outcomes = _run_serially(songs, work, check, on_progress)
    for outcome in outcomes:
        if isinstance(outcome.error, FATAL_ERRORS):
            raise outcome.error
        yield outcome


def _run_serially(
    songs: Sequence[PlannedSong],
    work: Work,
    check: Callable[[PlannedSong], object],
    on_progress: SongProgress | None,
) -> Iterator[Outcome]:
    for song in songs:
        yield _check(song, check) or _separate(song, work, on_progress)


def _check(song: PlannedSong, check: Callable[[PlannedSong], object]) -> Outcome | None:
    """The outcome of a song that fails the check."""
    try:
        check(song)
    except TfswaError as error:
        return Outcome(song, "failed", error=error)
    return None


def _separate(song: PlannedSong, work: Work, on_progress: SongProgress | None) -> Outcome:
    def report(done: float, total: float | None) -> None:
        if on_progress:
            on_progress(song, done, total)

    report(0.0, None)
    try:
        return work.separate(song, report)
    except Exception as error:
        trace = traceback.format_exc()
        for each in (error, error.__cause__):  # else their frames keep the song's samples in memory
            if each is not None:
                traceback.clear_frames(each.__traceback__)
        return Outcome(song, "failed", error=error, trace=trace)


def _run_in_processes(
    songs: Sequence[PlannedSong],
    work: Work,
    check: Callable[[PlannedSong], object],
    jobs: int,
    on_progress: SongProgress | None,
) -> Iterator[Outcome]:
    from multiprocessing.connection import Connection, wait

    waiting = list(reversed(songs))
    failed: list[Outcome] = []
    busy: dict[Connection, tuple[SpawnProcess, PlannedSong]] = {}

    def take_song() -> PlannedSong | None:
        while waiting:
            song = waiting.pop()
            outcome = _check(song, check)
            if outcome is None:
                return song
            failed.append(outcome)
        return None

    try:
        while len(busy) < jobs and (song := take_song()):
            process, connection = _start(work)
            busy[connection] = process, song
            connection.send(song)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, song = busy[ready]
                try:
                    message = ready.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    remove_abandoned_below(Path(work.options.out) / song.folder)
                    message = Outcome(song, "failed", error=_crash_error(song, process.exitcode))
                if not isinstance(message, Outcome):
                    if on_progress:
                        on_progress(song, *message)
                    continue
                del busy[ready]
                yield from _drain(failed)
                yield message
                if (song := take_song()) is None:
                    ready.close()  # the process ends by itself
                    continue
                if process.exitcode is not None:
                    process, ready = _start(work)
                busy[ready] = process, song
                ready.send(song)
        yield from _drain(failed)
    finally:
        for process, _ in busy.values():
            process.terminate()
        for process, _ in busy.values():
            process.join(_PATIENCE)


def _drain(outcomes: list[Outcome]) -> Iterator[Outcome]:
    while outcomes:
        yield outcomes.pop(0)


def _start(work: Work) -> tuple[SpawnProcess, Connection]:
    import multiprocessing

    # spawn: a fork of a process with the threads of soxr, BLAS and ONNX Runtime can hang.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    with _ignoring_interrupts():  # inherited by the worker: on Ctrl-C this process ends it
        process.start()
    theirs.close()
    return process, ours


def _serve(connection: Connection, work: Work) -> None:
    """The loop of a worker process: receive songs and send outcomes, until the connection is closed."""
    terminated = False

    def terminate(signal_number: int, frame: object) -> None:
        nonlocal terminated
        terminated = True
        # Once is enough: a second one, which the parent's end sends, would interrupt the removal of files.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signal_number)

    def report(song: PlannedSong, done: float, total: float | None) -> None:
        if terminated:  # but the exception was lost: it came up in a callback from C, or in a destructor
            raise SystemExit(128 + signal.SIGTERM)
        connection.send((done, total))

    signal.signal(signal.SIGTERM, terminate)
    if hasattr(signal, "SIGHUP"):
        # The terminal was closed: as after Ctrl-C, the parent process ends this one.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        while True:
            song: PlannedSong = connection.recv()
            outcome = _separate(song, work, report)
            try:
                connection.send(outcome)
            except (TypeError, AttributeError, ValueError):  # the error cannot be pickled
                error = RuntimeError(f"{type(outcome.error).__name__}: {outcome.error}")
                connection.send(Outcome(song, "failed", error=error, trace=outcome.trace))
    except (EOFError, ConnectionError):
        return


def _crash_error(song: PlannedSong, code: int | None) -> TfswaError:
    how = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
    return TfswaError(f"{song.name}: its worker process {how}: try again with fewer --jobs")


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
