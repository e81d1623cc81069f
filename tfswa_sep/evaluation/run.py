"""Every song through every method: estimates one after another, their scoring in processes beside it."""

from __future__ import annotations

import multiprocessing
import shlex
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tfswa_sep.audio.atomic_file import temporary_folder
from tfswa_sep.errors import UsageError
from tfswa_sep.evaluation.methods import Method, check_kept
from tfswa_sep.evaluation.multitrack import Song
from tfswa_sep.evaluation.musdb import unpack
from tfswa_sep.evaluation.provenance import machine, versions
from tfswa_sep.evaluation.results import Evaluation, SongScore
from tfswa_sep.evaluation.scoring import Scored, Task, score

Progress = Callable[[str, str, float, float], None]  # song, method, seconds done, seconds in all


@dataclass(frozen=True)
class _Waiting:
    """A song whose scores are being worked out."""

    folder: Path  # of the song's temporary files
    scores: list[tuple[int, SongScore, Future[Scored]]]  # method's number, the rest, scores


def evaluate(
    songs: Sequence[Song],
    methods: Sequence[Method],
    *,
    data: str,
    metrics: Sequence[str] = (),
    apart: str | None = None,
    jobs: int = 1,
    earlier: Evaluation | None = None,
    on_progress: Progress | None = None,
    on_song: Callable[[Evaluation], None] | None = None,
    command: str | None = None,
) -> Evaluation:
    """Let every method separate every song, and score what it wrote to disk.

    data: name of the songs, for the record.
    metrics: "museval" and "fast", see scoring.py; global SDR and SI-SDR are always there.
    apart: a glob; the songs whose names match it are scored but kept out of the averages.
    jobs: processes that score; with 1 it is done here. The numbers are the same to the bit.
    earlier: an interrupted run; what it has scored is taken over.
    on_song: called with what there is so far, each time another song is scored.
    command: what was typed, for the record; None: this process's own arguments.

    With more than one job a script must stand under `if __name__ == "__main__"`, as always with processes.
    Raises UsageError (`apart` matches nothing, two methods of one name, `earlier` is another run, stems that
    are there would be overwritten), and all that separating and scoring raise.
    """
    run = Evaluation(
        data=data,
        metrics=tuple(metrics),
        methods=tuple(method.described() for method in methods),
        command=command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        versions=versions(),
    )
    names = [method.name for method in run.methods]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two methods are called {repeated.pop()!r}: rename a folder")
    check_kept(methods, songs)
    is_apart = {song.name: apart is not None and fnmatchcase(song.name, apart) for song in songs}
    if apart is not None and not any(is_apart.values()):
        raise UsageError(f"no song matches the pattern {apart!r}; there are {', '.join(is_apart)}")
    scores = _resumed_scores(run, earlier, is_apart)

    def so_far() -> Evaluation:
        return run.with_methods(
            [
                replace(method, songs=tuple(found[song.name] for song in songs if song.name in found))
                for method, found in zip(run.methods, scores, strict=True)
            ]
        )

    def finish(waiting: _Waiting) -> None:
        for number, started, future in waiting.scores:
            found = future.result()
            scores[number][started.song] = replace(
                started, stems=found.stems, skipped=found.skipped, warnings=found.warnings
            )
        shutil.rmtree(waiting.folder)
        if on_song is not None:
            on_song(so_far())

    queue: deque[_Waiting] = deque()
    with temporary_folder() as temporary, _executor(jobs) as executor:
        try:
            for song in songs:
                missing = [number for number, found in enumerate(scores) if song.name not in found]
                if missing:
                    some = {number: methods[number] for number in missing}
                    folder = Path(tempfile.mkdtemp(dir=temporary))
                    queue.append(_begin(song, some, run, executor, on_progress, is_apart[song.name], folder))
                while len(queue) > (jobs if jobs > 1 else 0):
                    finish(queue.popleft())
            while queue:
                finish(queue.popleft())
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return so_far()


def _resumed_scores(
    run: Evaluation, earlier: Evaluation | None, is_apart: dict[str, bool]
) -> list[dict[str, SongScore]]:
    """{song: score} for each method, from an earlier run of the same."""
    if earlier is None:
        return [{} for _ in run.methods]
    if (earlier.data, earlier.metrics) != (run.data, run.metrics):
        raise UsageError("what is there is of other songs or other metrics: leave out --resume")
    known = {method.name: method for method in earlier.methods}
    taken: list[dict[str, SongScore]] = []
    for method in run.methods:
        old = known.get(method.name, method)
        # Older records do not tell the precision; the file's SHA-256 tells files apart.
        if replace(old, songs=(), precision=old.precision or method.precision) != method:
            raise UsageError(f"what is there is of another {method.name}: leave out --resume")
        taken.append({song.song: song for song in old.songs if song.apart == is_apart.get(song.song)})
    return taken


def _begin(
    song: Song,
    methods: dict[int, Method],
    run: Evaluation,
    executor: Executor,
    on_progress: Progress | None,
    apart: bool,
    folder: Path,
) -> _Waiting:
    """Make the estimates of one song in `folder`, and hand them to the scoring."""
    song = unpack(song, folder)
    lengths: dict[int, tuple[Path, int]] = {}  # Hz -> the mixture at that rate
    waiting = []
    for number, method in methods.items():
        if method.rate not in lengths:
            path = folder / f"mixture_{method.rate}.wav"
            lengths[method.rate] = path, song.write_mixture(path, rate=method.rate)
        mixture, frames = lengths[method.rate]
        seconds = frames / method.rate

        def tell(done: float, name: str = run.methods[number].name, total: float = seconds) -> None:
            if on_progress is not None:
                on_progress(song.name, name, done, total)

        tell(0.0)
        place = folder / f"method_{number}"
        place.mkdir()
        estimates = method.estimate(song, mixture, place, tell)
        task = Task(song, mixture, estimates.files, method.rate, frames, run.metrics)
        started = SongScore(song.name, seconds, estimates.seconds, apart, {}, {}, ())
        waiting.append((number, started, executor.submit(score, task)))
    return _Waiting(folder, waiting)


def _executor(jobs: int) -> Executor:
    if jobs == 1:
        return _SerialExecutor()
    # Not forked: threads of a backend that are running would be copied without what they hold.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _SerialExecutor(Executor):
    """Does everything at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
