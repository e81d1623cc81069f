"""`tfswa-sep batch`: very many songs, on a Ray cluster, from and to object stores."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfswa_sep.cli.help import BATCH, OUTPUT, option
from tfswa_sep.cli.progress import INTERVAL, clock
from tfswa_sep.cli.separate import fetch_model
from tfswa_sep.cli.shared_options import Debug, Json, Model, Offline, Quiet, with_options
from tfswa_sep.cli.terminal import INTERRUPTED, one_line, print_error, say
from tfswa_sep.errors import BatchError, UsageError, install_command
from tfswa_sep.options import OutputOptions, Runtime

if TYPE_CHECKING:
    from tfswa_sep.cluster.estimate import Estimate
    from tfswa_sep.cluster.run import Cluster, Summary

CLUSTER = "Cluster"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder, s3:// prefix, or a manifest (.csv, .parquet, .jsonl) with a column named path.",
        show_default=False,
    ),
]
Target = Annotated[
    str, option(OUTPUT, "Folder or s3:// prefix for stems and rows.", "--out", "-o", metavar="TARGET")
]
Ray = Annotated[
    str | None,
    option(
        CLUSTER,
        "Ray cluster: HOST:PORT, ray://HOST:PORT, or auto.  [default: one on this machine]",
        "--ray",
        metavar="ADDRESS",
    ),
]
Workers = Annotated[
    str | None,
    option(
        CLUSTER, "Worker processes.  [default: as many as the cluster has CPUs for]", metavar="N or MIN:MAX"
    ),
]
Cpus = Annotated[float, option(CLUSTER, "CPUs per worker.", metavar="N", min=0)]
Gpus = Annotated[float, option(CLUSTER, "GPUs per worker; 0.25 lets four share one.", metavar="N", min=0)]
TimeLimit = Annotated[float, option(CLUSTER, "Give up on a song after this.", metavar="SECONDS", min=1)]
Overwrite = Annotated[bool, option(OUTPUT, "Redo finished songs, and replace any file.", "--overwrite")]
DryRun = Annotated[bool, option(BATCH, "Print songs, hours, time and size, from a sample.", "--dry-run")]


@with_options
def batch(
    source: Source,
    out: Target,
    options: OutputOptions = OutputOptions(),
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    ray: Ray = None,
    workers: Workers = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    time_limit: TimeLimit = 3600,
    model: Model = None,
    runtime: Runtime = Runtime(),
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Separate a library of songs, on one machine or many.

    It runs on Ray. Songs come from a folder, an object store or a manifest; stems go to a folder or an object
    store. Each song gets a row in TARGET/rows/*.parquet. Run it again to continue: finished songs are skipped.
    """
    if not all(importlib.util.find_spec(package) for package in ("fsspec", "pyarrow", "ray")):
        raise UsageError(f"batch needs more packages: {install_command(extra='ray')}")
    from tfswa_sep.audio.atomic_file import temporary_folder
    from tfswa_sep.cluster.catalog import write_catalog
    from tfswa_sep.cluster.estimate import estimate
    from tfswa_sep.cluster.run import Cluster, run_catalog
    from tfswa_sep.cluster.worker import Job

    cluster = Cluster(
        address=ray, workers=_parse_workers(workers), cpus=cpus, gpus=gpus, time_limit=time_limit
    )
    runtime = replace(runtime, threads=runtime.threads or max(1, int(cpus)))
    _check_stems(options)
    job = Job(
        target=out, model=fetch_model(model, runtime), runtime=runtime, options=options, overwrite=overwrite
    )
    with temporary_folder() as folder:
        catalog = write_catalog(source, folder / "songs.parquet")
        if catalog.ignored and not quiet:
            print_error(f"note: ignored {catalog.ignored} files that are not songs")
        if dry_run:
            _print_estimate(estimate(catalog, job), cluster, as_json=as_json)
            return
        display = _Display(shown=not quiet and not as_json)
        try:
            summary = run_catalog(
                catalog,
                job,
                cluster,
                on_row=lambda row: display.add(row, quiet=as_json),
                on_change=display.show,
            )
        finally:
            display.stop()
    _print_summary(summary, as_json=as_json, quiet=quiet)
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)
    if summary.failed:
        raise typer.Exit(BatchError.exit_code)


def _parse_workers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, mark, high = text.partition(":")
    try:
        bounds = int(low), int(high if mark else low)
    except ValueError:
        bounds = 0, 0
    if not 1 <= bounds[0] <= bounds[1]:
        raise UsageError(f"invalid --workers '{text}': expected a number, or two such as 4:64")
    return bounds


def _check_stems(options: OutputOptions) -> None:
    """Find mistakes in the template before any song is fetched."""
    from tfswa_sep.audio.formats import find_format
    from tfswa_sep.audio.stem_paths import target_paths

    if "{track}" not in options.name:
        raise UsageError("with several songs --name needs {track}, or they would overwrite each other")
    find_format(options.audio_format, options.bit_depth, options.bitrate)
    target_paths(Path("song"), ("vocals", "drums"), out=Path("out"), extension=".wav", template=options.name)


class _Display:
    """How far the batch is, on stderr: two lines that change on a terminal, otherwise a line now and then."""

    def __init__(self, *, shown: bool) -> None:
        self._live: Any = None
        self._shown = shown
        self._last = time.monotonic()
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live("", console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._live.start()

    def show(self, summary: Summary) -> None:
        """Print the state."""
        if not self._shown:
            return
        if self._live is not None:
            from rich.text import Text

            self._live.update(
                Text("\n".join(_describe(summary)), no_wrap=True, overflow="ellipsis"), refresh=True
            )
        elif time.monotonic() - self._last >= INTERVAL:
            self._last = time.monotonic()
            print_error(", ".join(_describe(summary)))

    def add(self, row: dict[str, Any], *, quiet: bool) -> None:
        """Print what a song's row says of failures and warnings."""
        messages = [f"note: {text}" for text in row.get("warnings") or ()]
        if row["state"] == "failed":
            message = row["message"]
            messages.append(message if row["source"] in message else f"{row['source']}: {message}")
        for message in [] if quiet else messages:
            if self._live is not None:
                self._live.console.print(one_line(f"tfswa-sep: {message}"), markup=False, highlight=False)
            else:
                print_error(message)

    def stop(self) -> None:
        """Clear the line."""
        if self._live is not None:
            self._live.stop()


def _describe(summary: Summary) -> tuple[str, str]:
    """Two lines of at most 80 columns."""
    minutes = max(summary.elapsed, 1e-3) / 60
    first = (
        f"{summary.finished:,} of {summary.songs:,} songs, "
        f"{summary.seconds / 3600 / minutes:.2f} hours of music per minute"
    )
    if summary.interrupted:
        return first, "stopping after the songs under way (Ctrl-C again stops at once)"
    if begun := summary.done + summary.failed.total():
        first += f", {clock((summary.songs - summary.finished) * summary.elapsed / begun)} left"
    second = f"{_count(summary.workers, 'worker')}, {summary.cpu_seconds / 3600:,.2f} CPU hours"
    if summary.failed:
        second += ", failed: " + ", ".join(f"{n:,} {kind}" for kind, n in summary.failed.most_common())
    return first, second


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _print_summary(summary: Summary, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        document = asdict(summary) | {"seconds_elapsed": round(summary.elapsed, 3)}
        del document["began"]
        say(json.dumps(document))
    elif not quiet:
        if summary.skipped:
            say(f"{summary.skipped:,} already separated (--overwrite redoes them)")
        say(
            f"{summary.done:,} separated: {summary.seconds / 3600:.2f} hours of music in {clock(summary.elapsed)}, "
            f"{summary.cpu_seconds / 3600:.2f} CPU hours"
        )
        for kind, count in summary.failed.most_common():
            say(f"{count:,} failed: {kind}")
        if summary.lost_workers:
            say(f"workers that died and were replaced: {summary.lost_workers}")
        left = summary.songs - summary.finished
        if left:
            say(f"{left:,} left: run the same command again")


def _print_estimate(found: Estimate, cluster: Cluster, *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(asdict(found)))
        return
    from rich.filesize import decimal

    from tfswa_sep.inference.hardware import count_cores

    say(f"songs        {found.songs:,}" + (f", {found.done:,} of them done" if found.done else ""))
    say(f"music        {found.hours:,.1f} hours (from {found.sampled} songs)")
    say(f"to read      {decimal(round(found.bytes_to_read))}")
    say(f"to write     {decimal(round(found.bytes_to_write))}")
    say(f"CPU hours    {found.cpu_hours:,.2f} (measured on this machine)")
    if not cluster.gpus and cluster.cpus:
        workers = (
            cluster.workers[1]
            if cluster.workers
            else max(1, int((count_cores() or os.cpu_count() or 1) / cluster.cpus))
        )
        say(
            f"time         {clock(3600 * found.cpu_hours / (workers * cluster.cpus))} with {_count(workers, 'worker')}"
        )
