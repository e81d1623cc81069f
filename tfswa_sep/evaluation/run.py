"""Run every method on every song: estimates one after another, scored meanwhile in other processes."""

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
from tfswa_sep.evaluation.methods import Method, check_estimates, check_outputs
from tfswa_sep.evaluation.multitrack import Song
from tfswa_sep.evaluation.musdb import decode_stems
from tfswa_sep.evaluation.provenance import machine, versions
from tfswa_sep.evaluation.results import Evaluation, SongScore
from tfswa_sep.evaluation.scoring import Scored, Task, score_song

Progress = Callable[[str, str, float, float], None]  # song, method, seconds done, seconds in total


@dataclass(frozen=True)
class _Pending:
    """A song that is being scored."""

    folder: Path  # of the song's temporary files
    scores: list[tuple[int, SongScore]]  # number of the method, score without stems
    stems: Future[list[Scored]]


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
    """Separate every song with every method, and score the stems.

    With more than one job, a script needs `if __name__ == "__main__"`, as always with multiprocessing.

    Args:
        songs: Songs with true stems.
        methods: Sources of estimates.
        data: Name of the data set, for the record.
        metrics: "museval" or "museval-reference" and "fast", see bsseval.py; "perceptual", see perceptual.py;
            "peass", see peass.py; besides the metrics that are always computed.
        apart: Glob of songs to score but leave out of the averages.
        jobs: Scoring processes; with 1, this process scores. The scores are identical to the bit.
        earlier: An interrupted run to continue.
        on_progress: Called with song, method, seconds done and seconds in total.
        on_song: Called with the results so far whenever a song has been scored.
        command: The command line, for the record; None means this process's arguments.

    Raises:
        UsageError: `apart` matches nothing, two methods have the same name, `earlier` is from another run, or
            existing stems would be overwritten.
        TfswaError: Separation or scoring failed.
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
    check_outputs(methods, songs)
    is_apart = {song.name: apart is not None and fnmatchcase(song.name, apart) for song in songs}
    if apart is not None and not any(is_apart.values()):
        raise UsageError(f"no song matches the pattern {apart!r}: choose from {', '.join(is_apart)}")
    check_estimates(methods, songs)
    scores = _resumed_scores(run, earlier, is_apart)

    def results_so_far() -> Evaluation:
        return run.with_methods(
            [
                replace(method, songs=tuple(by_song[song.name] for song in songs if song.name in by_song))
                for method, by_song in zip(run.methods, scores, strict=True)
            ]
        )

    def finish(pending: _Pending) -> None:
        for (number, started), scored in zip(pending.scores, pending.stems.result(), strict=True):
            scores[number][started.song] = replace(
                started, stems=scored.stems, skipped=scored.skipped, warnings=scored.warnings
            )
        shutil.rmtree(pending.folder)
        if on_song is not None:
            on_song(results_so_far())

    queue: deque[_Pending] = deque()
    with temporary_folder() as temporary, _executor(jobs) as executor:
        try:
            for song in songs:
                missing = [number for number, by_song in enumerate(scores) if song.name not in by_song]
                if missing:
                    remaining = {number: methods[number] for number in missing}
                    folder = Path(tempfile.mkdtemp(dir=temporary))
                    queue.append(
                        _begin(song, remaining, run, executor, on_progress, is_apart[song.name], folder)
                    )
                while len(queue) > (jobs if jobs > 1 else 0):
                    finish(queue.popleft())
            while queue:
                finish(queue.popleft())
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return results_so_far()


def _resumed_scores(
    run: Evaluation, earlier: Evaluation | None, is_apart: dict[str, bool]
) -> list[dict[str, SongScore]]:
    """{song: score} of each method, from an earlier run."""
    if earlier is None:
        return [{} for _ in run.methods]
    if (earlier.data, earlier.metrics) != (run.data, run.metrics):
        raise UsageError("the earlier results are for other songs or metrics: remove --resume")
    known = {method.name: method for method in earlier.methods}
    resumed: list[dict[str, SongScore]] = []
    for method in run.methods:
        old = known.get(method.name, method)
        # Older records have no precision; there the SHA-256 identifies the file.
        if replace(old, songs=(), precision=old.precision or method.precision) != method:
            raise UsageError(f"the earlier results are for a different {method.name}: remove --resume")
        songs = [song for song in old.songs if not song.is_missing]  # its estimates may have come since
        resumed.append({song.song: song for song in songs if song.apart == is_apart.get(song.song)})
    return resumed


def _begin(
    song: Song,
    methods: dict[int, Method],
    run: Evaluation,
    executor: Executor,
    on_progress: Progress | None,
    apart: bool,
    folder: Path,
) -> _Pending:
    """Write the estimates of one song to `folder`, and submit them for scoring."""
    song = decode_stems(song, folder)
    lengths: dict[int, tuple[Path, int]] = {}  # Hz -> the mixture at that rate
    scores, tasks = [], []
    for number, method in methods.items():
        if method.rate not in lengths:
            path = folder / f"mixture_{method.rate}.wav"
            lengths[method.rate] = path, song.write_mixture(path, rate=method.rate)
        mixture, frames = lengths[method.rate]
        seconds = frames / method.rate

        def report(done: float, name: str = run.methods[number].name, total: float = seconds) -> None:
            if on_progress is not None:
                on_progress(song.name, name, done, total)

        report(0.0)
        place = folder / f"method_{number}"
        place.mkdir()
        estimates = method.estimate(song, mixture, place, report)
        tasks.append(Task(song, mixture, estimates.files, method.rate, frames, run.metrics))
        started = SongScore(song.name, seconds, estimates.seconds, apart, {}, {}, ())
        scores.append((number, started))
    return _Pending(folder, scores, executor.submit(score_song, tasks))


def _executor(jobs: int) -> Executor:
    if jobs == 1:
        return _SerialExecutor()
    # Not forked: a backend's running threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _SerialExecutor(Executor):
    """Runs each call at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
