"""Hand out the songs of a catalogue to Ray actors, and collect their rows.

Ray Data's pools retry a whole block, and retry one that kills its worker for ever. So songs are handed out one by one:
a worker that dies costs the songs it had, which get another chance, and one that has seen three workers die is set
aside. Songs that saw one die come last, and each has its worker for itself, so that no other is blamed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from tfswa_sep.cluster import rows
from tfswa_sep.cluster.catalog import Catalog, Song, is_in
from tfswa_sep.cluster.store import Store, describe
from tfswa_sep.cluster.worker import FATAL, Job, Row, SongWorker, new_row
from tfswa_sep.errors import DeviceError, InputError, TfswaError

STRIKES = 3  # workers that may die over a song
_PATIENCE = 10.0  # seconds for a cluster to answer
_PER_WORKER = 2  # songs at a time: one is separated while another is fetched or stored


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How the workers run.

    Attributes:
        address: Of a Ray cluster, "auto" for the one that this machine belongs to; None starts one on this machine.
        workers: The lowest and the highest number of workers; None for one per `cpus` of the cluster.
        cpus: Per worker.
        gpus: Per worker; a fraction lets several share one.
        time_limit: Seconds that a song may take.
    """

    address: str | None = None
    workers: tuple[int, int] | None = None
    cpus: float = 1
    gpus: float = 0
    time_limit: float = 3600.0


@dataclass
class Summary:
    """A batch so far.

    Attributes:
        songs: In the catalogue.
        skipped: Done by an earlier run.
        done: Separated by this one.
        failed: The number of songs for each class of error.
        seconds: Of music that was separated.
        cpu_seconds: That the workers computed.
        workers: At present.
        lost_workers: That died.
        began: time.monotonic() at the start.
        interrupted: Whether it was asked to stop.
    """

    songs: int
    skipped: int = 0
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    workers: int = 0
    lost_workers: int = 0
    began: float = field(default_factory=time.monotonic)
    interrupted: bool = False

    @property
    def finished(self) -> int:
        """Songs that need nothing more."""
        return self.skipped + self.done + self.failed.total()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def add(self, row: Row) -> None:
        """Count a row."""
        if row["state"] == "done":
            self.done += 1
            self.seconds += row["seconds"]
        else:
            self.failed[row["error"]] += 1
        self.cpu_seconds += row.get("cpu", 0.0)


def run_catalog(
    catalog: Catalog,
    job: Job,
    cluster: Cluster,
    *,
    on_row: Callable[[Row], object] = lambda row: None,
    on_change: Callable[[Summary], object] = lambda summary: None,
    worker: Callable[[Job], Any] = SongWorker,
) -> Summary:
    """Separate all songs of a catalogue that are not done yet, and write their rows.

    After KeyboardInterrupt no more songs are begun; those under way are finished. A second one stops at once.

    Args:
        catalog: The songs.
        job: What is done with each.
        cluster: What runs it.
        on_row: Called with each row.
        on_change: Called about once a second.
        worker: Makes what an actor runs; for tests.

    Raises:
        TfswaError: The cluster cannot be used, the rows cannot be written, or an error that every song would have.
    """
    target = Store(job.target)
    target.check_writable()
    rows.compact(target)
    if clash := set(rows.SCHEMA.names) & set(catalog.columns.names):
        raise InputError(f"the manifest's column {min(clash)} has a name that the rows use: rename it")
    done = np.array([], np.uint64) if job.overwrite else rows.finished_keys(target, job.work)
    summary = Summary(catalog.songs)

    def waiting() -> Iterator[Song]:
        for song in catalog:
            if is_in(rows.done_key(song.source, song.version), done):
                summary.skipped += 1
            else:
                yield song

    with (
        _signals_raise(),
        _connected(cluster),
        _stops_gently(summary),
        rows.RowWriter(target, catalog.columns) as writer,
    ):
        pool = _Pool(job, cluster, worker, summary)
        try:
            for row in pool.run(waiting(), on_change):
                summary.add(row)
                writer.add(row)
                on_row(row)
                if fatal := FATAL.get(row.get("error", "")):
                    raise fatal(row["message"])
        finally:
            pool.stop()
    rows.compact(target)
    on_change(summary)
    return summary


@contextmanager
def _connected(cluster: Cluster) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine, which ends with this block."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns about it
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if cluster.address:
        _check_address(cluster.address)
    try:
        ray.init(
            address=cluster.address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
        )
    except SystemError:
        raise
    except Exception as error:  # Ray raises some without a class of their own
        raise _unreachable(cluster.address or "on this machine", error) from None
    for number, handler in before.items():  # Ray installs its own
        signal.signal(number, handler)
    try:
        # Ray prints on stdout when a worker dies, which `Summary.lost_workers` counts.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise DeviceError if nobody answers at HOST:PORT, for which Ray would wait minutes."""
    host, mark, port = address.removeprefix("ray://").rpartition(":")
    if mark and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"the Ray cluster {address} cannot be reached ({describe(error)}): check --ray, or leave it out"
    )


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise what a signal handler raised while Ray waited; Ray makes a SystemError of it."""
    try:
        yield
    except SystemError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


@contextmanager
def _stops_gently(summary: Summary) -> Iterator[None]:
    """Let the first Ctrl-C only set `interrupted`."""

    def interrupt(number: int, frame: object) -> None:
        if summary.interrupted:
            raise KeyboardInterrupt
        summary.interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(eq=False)
class _Worker:
    actor: Any
    is_ready: bool = False
    songs: dict[Any, Song] = field(default_factory=dict)  # by the reference of their rows
    began: dict[Any, float] = field(default_factory=dict)


class _Pool:
    """Actors, and which songs they have."""

    def __init__(self, job: Job, cluster: Cluster, make: Callable[[Job], Any], summary: Summary) -> None:
        import ray

        self._ray = ray
        self._job = job
        self._cluster = cluster
        self._summary = summary
        self._class = ray.remote(_actor_class(make))
        lowest, highest = cluster.workers or (self._room(),) * 2
        self._lowest, self._highest = lowest, max(lowest, highest)
        self._workers: list[_Worker] = []
        self._refs: dict[Any, _Worker] = {}  # of rows, and of workers that get ready
        self._strikes = Counter[str]()
        self._overdue = set[str]()
        self._suspects: deque[Song] = deque()
        self._is_proven = False  # whether any worker has ever been ready

    def run(self, songs: Iterator[Song], on_change: Callable[[Summary], object]) -> Iterator[Row]:
        """Yield the row of each song, in any order."""
        for _ in range(self._lowest):
            self._start_worker()
        last = time.monotonic()
        more = True
        while True:
            if not self._summary.interrupted:
                more = self._hand_out(songs, more=more)
                self._grow(more=more)
            is_idle = not any(worker.songs for worker in self._workers)
            if is_idle and (self._summary.interrupted or not (more or self._suspects)):
                return
            yield from self._collect()
            if time.monotonic() - last >= 1:
                last = time.monotonic()
                self._summary.workers = sum(worker.is_ready for worker in self._workers)
                self._stop_overdue()
                on_change(self._summary)

    def stop(self) -> None:
        """Stop all workers."""
        for worker in self._workers:
            with suppress(Exception):
                self._ray.kill(worker.actor)
        self._workers = []

    def _room(self) -> int:
        resources = self._ray.cluster_resources()
        by_cpu = resources.get("CPU", 1) / self._cluster.cpus if self._cluster.cpus else 1
        by_gpu = resources.get("GPU", 0) / self._cluster.gpus if self._cluster.gpus else by_cpu
        room = int(min(by_cpu, by_gpu))
        if not room:
            raise DeviceError(
                f"the Ray cluster has no room for a worker with {self._cluster.cpus:g} CPUs and "
                f"{self._cluster.gpus:g} GPUs: change --cpus or --gpus, or set --workers if it can grow"
            )
        return room

    def _start_worker(self) -> None:
        actor = self._class.options(
            num_cpus=self._cluster.cpus, num_gpus=self._cluster.gpus, max_concurrency=_PER_WORKER
        ).remote(self._job)
        worker = _Worker(actor)
        self._workers.append(worker)
        self._refs[actor.prepare.remote()] = worker

    def _grow(self, *, more: bool) -> None:
        """Ask for more workers while there are songs for them; a cluster that can grow then adds machines."""
        asked = sum(not worker.is_ready for worker in self._workers)
        ready = len(self._workers) - asked
        all_busy = all(worker.songs for worker in self._workers if worker.is_ready)
        if more and all_busy and len(self._workers) < self._highest and asked <= ready:
            self._start_worker()

    def _hand_out(self, songs: Iterator[Song], *, more: bool) -> bool:
        """Give each worker what it can take; return whether there may be more songs.

        Songs under suspicion come last: whatever else kills workers, such as a machine that fails, may be over by then.
        """
        for worker in self._workers:
            if not worker.is_ready or any(self._strikes[song.source] for song in worker.songs.values()):
                continue
            while more and len(worker.songs) < _PER_WORKER:
                if (song := next(songs, None)) is None:
                    more = False
                else:
                    self._submit(worker, song)
            if not more and self._suspects and not worker.songs:
                self._submit(worker, self._suspects.popleft())
        return more

    def _submit(self, worker: _Worker, song: Song) -> None:
        ref = worker.actor.separate.remote(song)
        worker.songs[ref] = song
        worker.began[ref] = time.monotonic()
        self._refs[ref] = worker

    def _collect(self) -> Iterator[Row]:
        ready, _ = self._ray.wait(list(self._refs), num_returns=1, timeout=0.5)
        if ready:
            ready, _ = self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
        for ref in ready:
            if ref not in self._refs:  # its worker has died meanwhile
                continue
            worker = self._refs.pop(ref)
            song = worker.songs.pop(ref, None)
            worker.began.pop(ref, None)
            try:
                result = self._ray.get(ref)
            except self._ray.exceptions.RayActorError:
                yield from self._bury(worker, [song] if song else [])
                continue
            except Exception as error:
                self._forget(worker)
                if song is None:
                    self._cannot_start(error)
                else:
                    yield self._failure(song, str(error), type(error).__name__)
                continue
            if song is None:
                worker.is_ready = self._is_proven = True
            else:
                yield {**result, "attempts": self._strikes.pop(song.source, 0) + 1}

    def _bury(self, worker: _Worker, songs: Iterable[Song]) -> Iterator[Row]:
        """A worker has died: what it had gets another chance, or is set aside."""
        had = [*songs, *worker.songs.values()]
        if worker.is_ready:
            self._summary.lost_workers += 1
        self._forget(worker)
        for song in had:
            self._strikes[song.source] += 1
            if song.source in self._overdue:
                limit = f"{self._cluster.time_limit:g} s"
                yield self._failure(
                    song, f"{song.source} took longer than {limit}: see --time-limit", "TimeLimit"
                )
            elif self._strikes[song.source] < STRIKES:
                self._suspects.append(song)
            else:
                yield self._failure(song, f"{song.source}: its worker died {STRIKES} times", "WorkerDied")
        if not self._summary.interrupted and len(self._workers) < self._lowest:
            self._start_worker()

    def _forget(self, worker: _Worker) -> None:
        with suppress(Exception):
            self._ray.kill(worker.actor)
        self._refs = {ref: other for ref, other in self._refs.items() if other is not worker}
        if worker in self._workers:
            self._workers.remove(worker)

    def _cannot_start(self, error: Exception) -> None:
        """A worker could not load the model. If none ever could, nor will the next."""
        cause = getattr(error, "cause", error)
        if not self._is_proven:
            raise cause if isinstance(cause, TfswaError) else DeviceError(f"no worker can start: {cause}")
        self._summary.lost_workers += 1
        self._start_worker()

    def _stop_overdue(self) -> None:
        """End workers whose song takes too long."""
        limit = time.monotonic() - self._cluster.time_limit
        for worker in list(self._workers):
            if any(began < limit for began in worker.began.values()):
                self._overdue |= {
                    song.source for ref, song in worker.songs.items() if worker.began[ref] < limit
                }
                self._ray.kill(worker.actor)

    def _failure(self, song: Song, message: str, kind: str) -> Row:
        return new_row(song, self._job) | {
            "state": "failed",
            "error": kind,
            "message": " ".join(message.split())[:500],
            "attempts": self._strikes.pop(song.source, 0) or 1,
            "finished": datetime.now(UTC),
        }


def _actor_class(make: Callable[[Job], Any]) -> type[Any]:
    """The actor: what `make` makes, with counters for Ray's dashboard."""

    class TfswaWorker:
        def __init__(self, job: Job) -> None:
            from ray.util.metrics import Counter

            self._worker = make(job)
            self._songs = Counter("tfswa_sep_songs", "Songs that ended", tag_keys=("state", "error"))
            self._seconds = Counter("tfswa_sep_music_seconds", "Seconds of music that were separated")

        def prepare(self) -> str:
            return str(self._worker.prepare())

        def separate(self, song: Song) -> Row:
            row: Row = self._worker.separate(song)
            self._songs.inc(tags={"state": row["state"], "error": row.get("error") or ""})
            if row.get("seconds"):
                self._seconds.inc(row["seconds"])
            return row

    return TfswaWorker
