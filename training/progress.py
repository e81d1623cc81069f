"""A progress bar on stderr, which draws nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(
    label: str, *, total: int, done: int = 0, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Yields advance(text=""): one more of `total` is done; `text` stands at the end of the bar."""
    if not shown or not sys.stderr.isatty() or done >= total:
        yield lambda text="": None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=total, completed=done, text="")

        def advance(text: str = "") -> None:
            bars.update(task, advance=1, text=text)

        yield advance
