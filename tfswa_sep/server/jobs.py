"""The queue of songs: who is separated next, how far each is, and what is cleaned up when.

Each parallel job has a thread of the server that drives a worker process. The event loop is told of every change and
wakes those who watch.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import secrets
import shutil
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from tfswa_sep.batch.workers import threads_per_job
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.options import Runtime, ServeOptions
from tfswa_sep.server import worker
from tfswa_sep.server.store import Job, Store

ACTIVE = ("queued", "running")
_ATTEMPTS = 2  # a song that was running at two crashes of the server is not tried again
_IDLE_SECONDS = 120.0  # after which a worker process, with its model, is ended
_PATIENCE = 5.0  # seconds for a process to remove its unfinished files
_HOUR = 3600.0
_LONGEST_NAME = 150  # characters
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


class FullError(Exception):
    """The queue has no room; try again later."""


class QuotaError(Exception):
    """The disk quota is used up."""


@dataclass(eq=False)
class Reservation:
    """Room for songs that are being uploaded."""

    songs: int = 1
    size: int = 0  # bytes


@dataclass
class Progress:
    """How far a running song is."""

    files: dict[str, Path] = field(default_factory=dict)  # stem -> growing WAV file
    done: float = 0.0  # seconds of the song
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the song was opened."""
        return time.monotonic() - self.began


class Jobs:
    """All songs of a server, queued or finished. Safe to use from several threads.

    Args:
        folder: Where songs, stems and the database are; one server at a time.
        options: The limits.
        runtime: How models run.
        model: The default model, "" for tfswa-sep's.
    """

    def __init__(self, folder: Path, options: ServeOptions, runtime: Runtime, model: str = "") -> None:
        self.options = options
        self.model = model
        self.uploads = folder / "uploads"
        self.root = folder
        self._folder = folder / "songs"
        self._runtime = replace(runtime, threads=runtime.threads or threads_per_job(options.jobs))
        for each in (self.uploads, self._folder):
            each.mkdir(parents=True, exist_ok=True)
        self._store = Store(folder / "jobs.sqlite")
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._jobs: dict[str, Job] = {job.id: job for job in self._store.load()}
        self._progress: dict[str, Progress] = {}
        self._sizes: dict[str, int] = {}  # bytes on disk
        self._reservations: set[Reservation] = set()
        self._warm = False  # a worker was requested in advance
        self._stopping = False
        self._watching_ended = False
        self._slots: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchers: set[Watcher] = set()
        self._recover()

    def start(self) -> None:
        """Begin to separate; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._slots = [
            threading.Thread(target=self._run_slot, name=f"job-{number}")
            for number in range(self.options.jobs)
        ]
        self._slots.append(threading.Thread(target=self._expire_hourly, name="expiry"))
        for slot in self._slots:
            slot.start()

    def stop(self) -> None:
        """End the worker processes; songs that were running are queued for the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.end_watching()
        for slot in self._slots:
            slot.join()
        self._store.close()

    @property
    def stopping(self) -> bool:
        """Whether the server is about to end, and with it all watching."""
        return self._watching_ended

    def end_watching(self) -> None:
        """Wake all who watch; from now on `stopping` is true."""
        self._watching_ended = True
        self._wake("")

    # Reading

    def all(self) -> list[Job]:
        """Every job, the newest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)

    def get(self, job_id: str) -> Job | None:
        """A job, None if it does not exist."""
        return self._jobs.get(job_id)

    def progress(self, job_id: str) -> Progress | None:
        """How far a job is, None if it is not running."""
        return self._progress.get(job_id)

    def folder(self, job: Job) -> Path:
        """The folder of a job's files."""
        return self._folder / job.id

    def song(self, job: Job) -> Path:
        """A job's song."""
        return Path(job.path) if job.path else self.folder(job) / f"song{job.suffix}"

    def stem(self, job: Job, stem: str) -> Path | None:
        """The WAV file of a stem, growing while the job runs; None if there is none yet."""
        progress = self._progress.get(job.id)
        if progress and stem in progress.files and progress.files[stem].exists():
            return progress.files[stem]
        path = self.folder(job) / f"{stem}.wav"
        return path if stem in job.made or (progress and stem in progress.files) else None

    def queued(self) -> int:
        """How many songs wait."""
        with self._lock:
            return sum(job.state == "queued" for job in self._jobs.values())

    def used(self) -> int:
        """Bytes on disk, of all songs and stems."""
        with self._lock:
            return sum(self._sizes.values())

    def check_quota(self) -> None:
        """Raise QuotaError if the disk quota is used up."""
        if self.used() > self.options.quota * 1e9:
            raise QuotaError

    # Changing

    @contextmanager
    def reserve(self, size: int) -> Iterator[Reservation]:
        """Keep room for an upload of `size` bytes. Raises FullError or QuotaError if there is none."""
        reservation = Reservation(songs=0)
        with self._lock:
            self._reservations.add(reservation)
        try:
            self.grow(reservation, songs=1, size=size)
            yield reservation
        finally:
            with self._lock:
                self._reservations.discard(reservation)

    def grow(self, reservation: Reservation, *, songs: int, size: int) -> None:
        """Keep room for more songs or bytes. Raises FullError or QuotaError if there is none."""
        with self._lock:
            reservation.songs = max(songs, reservation.songs)
            reservation.size = max(size, reservation.size)
            if self.queued() + sum(each.songs for each in self._reservations) > self.options.max_queue:
                raise FullError
            if self.used() + sum(each.size for each in self._reservations) > self.options.quota * 1e9:
                raise QuotaError

    def add(
        self, name: str, file: Path, *, model: str = "", stems: Sequence[str] = (), uploaded: bool = True
    ) -> Job:
        """Queue a song.

        Args:
            name: Its file name, as the owner sees it.
            file: The song. An upload is moved to the job's folder.
            model: A registered name; "" for the default.
            stems: See OutputOptions; () for all.
            uploaded: Whether `file` was uploaded.
        """
        suffix = Path(name).suffix
        job = Job(
            id=secrets.token_hex(8),
            name=clean_name(name),
            model=model,
            stems=tuple(stems),
            created=time.time(),
            suffix=suffix if _SUFFIX.fullmatch(suffix) else "",
            path="" if uploaded else str(file),
        )
        self.folder(job).mkdir()
        if uploaded:
            os.replace(file, self.song(job))
        with self._changed:
            self._put(job)
            self._measure(job)
            self._changed.notify_all()
        return job

    def cancel(self, job_id: str) -> Job | None:
        """Stop a queued or running job, whose song is kept for another try; None if it does not exist."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job and job.state in ACTIVE:
                job = self._put(replace(job, state="cancelled", finished=time.time()))
                self._changed.notify_all()
        return job

    def retry(self, job_id: str) -> Job | None:
        """Queue a failed or cancelled job again; None if it does not exist.

        Raises:
            UsageError: It is neither failed nor cancelled.
            InputError: Its song is no longer there.
            FullError: There is no room.
        """
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return None
            if job.state not in ("failed", "cancelled") or job_id in self._progress:
                raise UsageError(f"{job.name} is {job.state}: only a failed or cancelled song can be retried")
            if not self.song(job).is_file():
                raise InputError(f"{job.name} is no longer there: add it again")
            with self.reserve(0):
                pass
            job = self._put(
                replace(job, state="queued", error={}, warnings=(), started=None, finished=None, attempts=0)
            )
            self._changed.notify_all()
        return job

    def delete(self, job_id: str) -> bool:
        """Stop a job and remove it with all its files; False if it does not exist."""
        with self._changed:
            job = self._jobs.pop(job_id, None)
            if job is None:
                return False
            self._store.delete(job_id)
            self._sizes.pop(job_id, None)
            running = job_id in self._progress
            self._changed.notify_all()
        if not running:  # else its slot removes the files, once the process has ended
            shutil.rmtree(self.folder(job), ignore_errors=True)
        self._wake(job_id)
        return True

    def measure(self, job: Job) -> None:
        """Count a job's bytes on disk again."""
        with self._lock:
            if job.id in self._jobs:
                self._measure(job)

    def warm_up(self) -> None:
        """Start a worker process in advance: somebody is about to add a song."""
        with self._changed:
            self._warm = True
            self._changed.notify_all()

    # Watching

    def watch(self) -> Watcher:
        """Report changes from now on, in the event loop; exit the context when done."""
        return Watcher(self._watchers)

    def _wake(self, job_id: str) -> None:
        def wake() -> None:
            for watcher in self._watchers:
                watcher.add(job_id)

        if self._loop and not self._loop.is_closed():
            with suppress(RuntimeError):  # closed in the meantime
                self._loop.call_soon_threadsafe(wake)

    # Inside; call these with the lock held

    def _put(self, job: Job) -> Job:
        self._jobs[job.id] = job
        self._store.save(job)
        self._wake(job.id)
        return job

    def _measure(self, job: Job) -> None:
        self._sizes[job.id] = sum(
            entry.stat().st_size for entry in self.folder(job).rglob("*") if entry.is_file()
        )

    def _recover(self) -> None:
        """After a restart: queue what was interrupted, and remove files that belong to nothing."""
        shutil.rmtree(self.uploads, ignore_errors=True)
        self.uploads.mkdir(exist_ok=True)
        for entry in self._folder.iterdir():
            if entry.name not in self._jobs:
                shutil.rmtree(entry, ignore_errors=True)
        for job in list(self._jobs.values()):
            self.folder(job).mkdir(exist_ok=True)
            if job.state == "running":
                self._remove_stems(job)
                again = job.attempts < _ATTEMPTS
                error = {
                    "kind": "Interrupted",
                    "message": "the server stopped while this song was being separated",
                }
                self._put(
                    replace(job, state="queued", started=None)
                    if again
                    else replace(job, state="failed", finished=time.time(), error=error)
                )
            self._measure(job)
        self._expire()

    def _remove_stems(self, job: Job) -> None:
        """Remove everything of a job but its song."""
        for entry in self.folder(job).iterdir():
            if entry == self.song(job):
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def _expire(self) -> None:
        oldest = time.time() - self.options.keep * 24 * _HOUR
        for job in self.all():
            if job.state not in ACTIVE and (job.finished or job.created) < oldest:
                self.delete(job.id)

    # Threads

    def _expire_hourly(self) -> None:
        with self._changed:
            while not self._stopping:
                self._expire()
                self._changed.wait_for(lambda: self._stopping, timeout=_HOUR)

    def _run_slot(self) -> None:
        process: _Process | None = None
        while True:
            job = self._take(idle=process is None)
            if self._stopping:
                break
            if process and (job is None or not process.alive):
                process.end()
                process = None
            if job is None and not self._warm:
                continue
            self._warm = False
            process = process or _Process(self._runtime, self.model)
            if job is not None and not self._separate(job, process):
                process.end()
                process = None
        if process:
            process.end()

    def _take(self, *, idle: bool) -> Job | None:
        """The next song, marked as running; None if there is none for a while, or a worker is to be started."""
        with self._changed:

            def ready() -> bool:
                return self._stopping or (self._warm and idle) or self.queued() > 0

            self._changed.wait_for(ready, timeout=None if idle else _IDLE_SECONDS)
            waiting = [job for job in self._jobs.values() if job.state == "queued"]
            if self._stopping or not waiting:
                return None
            job = min(waiting, key=lambda each: each.created)
            self._progress[job.id] = Progress()
            return self._put(
                replace(job, state="running", started=time.time(), attempts=job.attempts + 1, made=())
            )

    def _separate(self, job: Job, process: _Process) -> bool:
        """Drive a process through one song; return whether it can take another one."""
        limit = time.monotonic() + self.options.time_limit * 60
        task = worker.Task(
            song=self.song(job),
            name=job.name,
            folder=self.folder(job),
            model=job.model or self.model,
            stems=job.stems,
            max_minutes=self.options.max_minutes,
            room=self.options.quota * 1e9 - self.used(),
        )
        usable, writing = False, False
        outcome: dict[str, Any] = {}
        try:
            process.connection.send(task)
            while True:
                if self._stopping:
                    outcome = {"state": "queued", "started": None, "attempts": job.attempts - 1}
                    break
                current = self._jobs.get(job.id)
                if current is None or current.state != "running":  # deleted or cancelled
                    break
                if time.monotonic() > limit:
                    text = f"took longer than {self.options.time_limit:g} minutes, the limit here"
                    outcome = _failure("TimeLimit", f"{job.name} {text}")
                    break
                if not process.connection.poll(0.1):
                    if writing:  # by now the block of the last report is in the files
                        self._wake(job.id)
                    writing = False
                    continue
                kind, *values = process.connection.recv()
                if kind == "started":
                    self._begin(job, *values)
                elif kind == "progress":
                    self._progress[job.id].done = values[0]
                    self._wake(job.id)
                    writing = True
                else:
                    usable = True
                    outcome = {"state": "done", **values[0]} if kind == "done" else _failure(**values[0])
                    break
        except (EOFError, ConnectionError):
            outcome = _failure("Crash", f"{job.name}: its worker process {process.how_it_ended()}")
        if not usable:
            process.end()
        self._finish(job, outcome)
        return usable

    def _begin(
        self, job: Job, files: Mapping[str, str], rate: int, channels: int, total: float | None
    ) -> None:
        with self._lock:
            self._progress[job.id].files = {stem: Path(path) for stem, path in files.items()}
            self._progress[job.id].began = time.monotonic()
            if job.id in self._jobs:
                self._put(replace(self._jobs[job.id], sample_rate=rate, channels=channels, seconds=total))

    def _finish(self, job: Job, outcome: Mapping[str, Any]) -> None:
        with self._lock:
            current = self._jobs.get(job.id)
            if current is None:
                shutil.rmtree(self.folder(job), ignore_errors=True)
            else:
                if current.state == "running" and outcome:
                    finished = None if outcome["state"] == "queued" else time.time()
                    current = replace(current, finished=finished, **outcome)
                if current.state != "done":
                    self._remove_stems(current)
                self._measure(current)
                self._put(current)
            self._progress.pop(job.id, None)
        self._wake(job.id)


class Watcher:
    """The jobs that changed since the last look. For one task of the event loop; a context manager."""

    def __init__(self, watchers: set[Watcher]) -> None:
        self._watchers = watchers
        self._ids: dict[str, None] = {}
        self._some = asyncio.Event()

    def __enter__(self) -> Watcher:
        self._watchers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._watchers.discard(self)

    def add(self, job_id: str) -> None:
        """A job has changed; "" only wakes the watcher."""
        self._ids[job_id] = None
        self._some.set()

    async def changed(self) -> list[str]:
        """The ids of the jobs that have changed; waits until there are some."""
        await self._some.wait()
        self._some.clear()
        ids, self._ids = list(self._ids), {}
        return [job_id for job_id in ids if job_id]


class _Process:
    """A worker process, with a model."""

    def __init__(self, runtime: Runtime, model: str) -> None:
        # spawn: a fork of a process with threads can hang.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.connection: Connection = ours
        self._process: SpawnProcess = context.Process(
            target=worker.run, args=(theirs, runtime, model), daemon=True
        )
        self._ended = False
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        return not self._ended and self._process.is_alive()

    def how_it_ended(self) -> str:
        self._process.join(_PATIENCE)
        code = self._process.exitcode
        return f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._process.terminate()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()
        self._process.close()


def clean_name(name: str) -> str:
    """A file name to display and to derive others from: no folders, no control or direction characters."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    name = "".join(c for c in name if unicodedata.category(c)[0] != "C").strip()
    stem, suffix = os.path.splitext(name)
    return (stem[:_LONGEST_NAME] + suffix[:10]) or "song"


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"state": "failed", "error": {"kind": kind, "message": message}}
