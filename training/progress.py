"""A progress bar on stderr, shown only in a terminal."""

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
    """Yield `advance(text="")`, which advances the bar by one of `total` and shows `text` at its end."""
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
    # By default rich also sends what is printed to stdout, even to a pipe, to the bar's console.
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect) as bars:
        task = bars.add_task(label, total=total, completed=done, text="")
        yield lambda text="": bars.update(task, advance=1, text=text)
