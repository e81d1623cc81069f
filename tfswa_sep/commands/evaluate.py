"""`tfswa-sep eval`: songs whose true stems are known, separated and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfswa_sep.errors import OutputError, UsageError
from tfswa_sep.options import BackendName, Debug, Device, Model, Offline, Quiet, Threads
from tfswa_sep.terminal import progress_bar


def evaluate(
    data: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Songs as FOLDER/<song>/<stem>.wav (or flac, ogg, opus, mp3)."),
    ],
    model: Model = None,
    estimates: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Score these stems, FOLDER/<song>/<stem>.wav, of any separator."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Keep the separated stems here.")
    ] = None,
    apart: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Songs to score but to leave out of the mean.")
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Score the ideal ratio mask too, a ceiling.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the whole record there.")
    ] = None,
    backend: BackendName = "auto",
    device: Device = "auto",
    threads: Threads = None,
    offline: Offline = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Separate songs whose true stems are known, and score the result.

    Prints the SDR of each stem in decibels, and how far it is above that of the unseparated mixture.
    """
    if estimates is not None and (model or out):
        raise UsageError("--estimates scores stems that are there: leave out --model and --out")

    from rich.console import Console

    from tfswa_sep.evaluate import evaluate_estimates, evaluate_folder
    from tfswa_sep.report import report_table

    with progress_bar(data.name, shown=not quiet) as bar:

        def on_progress(song: str, seconds: float, total: float) -> None:
            if bar:
                bar(seconds, total)

        if estimates is not None:
            report = evaluate_estimates(data, estimates, apart=apart, oracle=oracle, on_progress=on_progress)
        else:
            from tfswa_sep import registry

            report = evaluate_folder(
                data,
                model=registry.find_model(model) if model else registry.default_model(),
                backend=backend,
                device=device,
                threads=threads,
                out=out,
                apart=apart,
                oracle=oracle,
                on_progress=on_progress,
            )
    if record is not None:
        try:
            record.write_text(report.to_json(), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {record}: {error.strerror}") from error
    if not quiet:
        Console().print(report_table(report))
