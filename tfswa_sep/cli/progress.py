"""The progress of songs and downloads on stderr: bars on a terminal, otherwise an occasional line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tfswa_sep.cli.terminal import one_line, print_error

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

Tables = Callable[
    [int], "Sequence[RenderableType]"
]  # columns of the terminal -> what is shown below the bars
INTERVAL = 10.0  # seconds from one line to the next
_STEP = 0.1  # of the song, from one line to the next


@contextmanager
def show_progress(*, shown: bool, downloads: bool = False, songs: int | None = None) -> Iterator[Progress]:
    """Yield a progress display, and clear it from the screen at the end.

    Args:
        shown: False for one that shows nothing.
        downloads: Whether it counts bytes of files, rather than seconds of songs.
        songs: How many there are, to count the finished ones; without a terminal, only the count is printed.
    """
    kind = (ProgressBars if sys.stderr.isatty() else ProgressLines) if shown else Progress
    progress = kind(downloads=downloads, songs=songs)
    try:
        yield progress
    finally:
        progress.stop()


class Progress:
    """Shows nothing."""

    def __init__(self, *, downloads: bool = False, songs: int | None = None) -> None:
        self._downloads, self._songs = downloads, songs

    def update(self, label: str, done: float, total: float | None) -> None:
        """`done` seconds or bytes of the song or file `label` are finished, of `total`; None if unknown."""

    def remove(self, label: str) -> None:
        """The song `label` is finished."""

    def count(self, done: int, tables: Tables | None = None) -> None:
        """`done` songs are finished; below the bars of a terminal, show these tables."""

    def stop(self) -> None:
        """Clear the screen of any bars."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Clear the screen meanwhile, so that lines can be printed."""
        yield


class ProgressLines(Progress):
    """For logs: a line per song, or for all of them, every 10 s, but not before another tenth is done."""

    def __init__(self, *, downloads: bool = False, songs: int | None = None) -> None:
        super().__init__(downloads=downloads, songs=songs)
        self._last: dict[str, tuple[float, float]] = {}  # label -> time and seconds done at the last line

    def update(self, label: str, done: float, total: float | None) -> None:
        """See Progress."""
        if self._songs is not None or not self._is_due(label, done, total):
            return
        percent = f"{done / total:.0%}, " if total else ""
        amount, verb = (megabytes, "downloaded") if self._downloads else (clock, "separated")
        print_error(f"{label}: {percent}{amount(done)}{f' of {amount(total)}' if total else f' {verb}'}")

    def count(self, done: int, tables: Tables | None = None) -> None:
        """See Progress."""
        if self._songs is not None and self._is_due("", done, self._songs):
            print_error(f"{done} of {self._songs} songs: {done / self._songs:.0%}")

    def remove(self, label: str) -> None:
        """See Progress."""
        self._last.pop(label, None)

    def _is_due(self, label: str, done: float, total: float | None) -> bool:
        now = time.monotonic()
        then, before = self._last.setdefault(label, (now, 0.0))
        if now - then < INTERVAL or (total and (done - before < _STEP * total or done >= total)):
            return False
        self._last[label] = now, done
        return True


class ProgressBars(Progress):
    """A bar per song or file: its name, the stage or the bytes so far, and the time left.

    If songs are counted, the bar on top is that of all songs.
    """

    def __init__(self, *, downloads: bool = False, songs: int | None = None) -> None:
        super().__init__(downloads=downloads, songs=songs)
        from rich.console import Console
        from rich.constrain import Constrain
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        console = Console(stderr=True)
        self._tables: Tables = lambda width: ()

        class Bars(Progress):
            def get_renderables(bars) -> Iterator[RenderableType]:
                # If the terminal had to wrap its "^C", one line too few would be erased.
                width = console.width - len("^C ")
                for renderable in (*super().get_renderables(), *self._tables(width)):
                    yield Constrain(renderable, width)

        name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        stage = TextColumn("{task.fields[stage]}", table_column=Column(width=10 if songs is None else 14))
        columns = (
            name,
            DownloadColumn() if downloads else stage,
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
        )
        # Not redirected: what is printed to stdout may be meant for another program.
        options = {"transient": True, "redirect_stdout": False, "redirect_stderr": False, "expand": True}
        self._bars = Bars(*columns, console=console, **options)  # type: ignore[arg-type]
        self._tasks: dict[str, TaskID] = {}
        self._count = (
            None if songs is None else self._bars.add_task("songs", total=songs, stage=f"0 of {songs}")
        )
        self._bars.start()

    def update(self, label: str, done: float, total: float | None) -> None:
        """See Progress."""
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(one_line(label), total=total, stage="")
        stage = "writing" if total and done >= total else "separating" if done else "reading"
        self._bars.update(self._tasks[label], completed=done, total=total, stage=stage)

    def remove(self, label: str) -> None:
        """See Progress."""
        if label in self._tasks:
            self._bars.remove_task(self._tasks.pop(label))

    def count(self, done: int, tables: Tables | None = None) -> None:
        """See Progress."""
        self._tables = tables or self._tables
        if self._count is not None:
            self._bars.update(self._count, completed=done, stage=f"{done} of {self._songs}")

    def stop(self) -> None:
        """See Progress."""
        self._bars.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See Progress."""
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()


def megabytes(size: float) -> str:
    """19.4 MB, 169 MB."""
    return f"{size / 1e6:,.{0 if size >= 99.95e6 else 1}f} MB"


def clock(seconds: float) -> str:
    """1:02:03, 2:03 or 3.4 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
