"""`tfswa-sep separate`, the command that may be left out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from os.path import realpath
from typing import TYPE_CHECKING, Annotated

import typer

from tfswa_sep.cli.downloads import fetch_early
from tfswa_sep.cli.help import BATCH, MESSAGES, OUTPUT, option
from tfswa_sep.cli.progress import show_progress
from tfswa_sep.cli.shared_options import Debug, Jobs, Model, Offline, Quiet, with_options
from tfswa_sep.constants import ACCOMPANIMENT, VOCALS
from tfswa_sep.errors import BatchError, UsageError
from tfswa_sep.options import OutputOptions, Runtime

if TYPE_CHECKING:
    from tfswa_sep.batch.plan import PlannedSong
    from tfswa_sep.registry import ModelInfo


Songs = Annotated[
    list[str],
    typer.Argument(
        metavar="SONG", help="Audio or video files, folders, or - for standard input.", show_default=False
    ),
]
Recursive = Annotated[
    bool, option(BATCH, "Search subfolders too; --out mirrors their layout.", "--recursive", "-r")
]
Overwrite = Annotated[
    bool | None,
    option(
        OUTPUT,
        "Redo finished songs and replace any file, or never replace a file.  [default: skip finished "
        "songs; replace only stems of earlier runs]",
        "--overwrite/--no-overwrite",
        show_default=False,
    ),
]
Shard = Annotated[
    str | None, option(BATCH, "Separate only part I of N, to split a batch across machines.", metavar="I/N")
]
JsonLines = Annotated[bool, option(MESSAGES, "Print one JSON object per song, one per line.", "--json")]
Verbose = Annotated[bool, option(MESSAGES, "Print how long each song took.", "--verbose", "-v")]
TwoStems = Annotated[str | None, typer.Option("--two-stems", hidden=True)]  # of demucs


@with_options
def separate(
    context: typer.Context,
    songs: Songs,
    options: OutputOptions = OutputOptions(),
    recursive: Recursive = False,
    overwrite: Overwrite = None,
    jobs: Jobs = 1,
    shard: Shard = None,
    model: Model = None,
    runtime: Runtime = Runtime(),
    offline: Offline = False,
    as_json: JsonLines = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
    two_stems: TwoStems = None,
) -> None:
    """Separate songs into stems.

    Each song gets its own folder. Stems keep the song's length, sample rate, channels and loudness, and
    add up to the song. No partial files are left behind.
    """
    from tfswa_sep.batch import inputs, plan, workers
    from tfswa_sep.cli.separate_report import SeparateReport

    options = _with_two_stems(options, two_stems)
    part, parts = _parse_shard(shard)
    info = fetch_model(model, runtime, shown=not quiet and not as_json)
    found = inputs.find_songs(songs, recursive=recursive)
    planned = plan.plan_songs(found, options.name)[part - 1 :: parts]
    several = len(planned) > 1
    threads = runtime.threads or workers.threads_per_job(min(jobs, len(planned)))
    work = plan.Work(
        model=info,
        runtime=replace(runtime, threads=threads),
        options=options,
        overwrite=overwrite,
        keep=frozenset(realpath(song.path) for song in found),
    )
    commands = list(getattr(context.parent and context.parent.command, "commands", ()))
    report = SeparateReport(count=len(planned), as_json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    with ExitStack() as opened:
        planned = [_fetch_stdin(song, opened) for song in planned]
        progress = opened.enter_context(show_progress(shown=not quiet and not as_json))
        labels = {
            song: f"[{number}/{len(planned)}] {song.name}" if several else song.name
            for number, song in enumerate(planned, 1)
        }
        outcomes = workers.run_songs(
            planned,
            work,
            check=lambda song: plan.check_song(song, commands, alone=not several),
            jobs=jobs,
            on_progress=lambda song, done, total: progress.update(labels[song], done, total),
        )
        for outcome in outcomes:
            if outcome.error and not several:
                raise outcome.error
            progress.remove(labels[outcome.song])
            with progress.paused():
                report.add(outcome)
    report.print_summary()
    if report.failed:
        raise typer.Exit(BatchError.exit_code)


def _with_two_stems(options: OutputOptions, stem: str | None) -> OutputOptions:
    """The options, with --two-stems STEM as the stems: STEM, and everything else."""
    if stem is None:
        return options
    if options.stems is not None:
        raise UsageError("--two-stems and --stems cannot be combined: remove one of them")
    stem = stem.strip().lower()
    return replace(options, stems=f"{stem},{ACCOMPANIMENT if stem == VOCALS else f'no_{stem}'}")


def fetch_model(name: str | None, runtime: Runtime, *, shown: bool = True) -> ModelInfo:
    """Find the model to use, and check as much as possible before anything heavy is loaded.

    A model with files for several backends is downloaded later, when the backend is chosen.

    Args:
        name: Its name, address or path; None for the default model.
        runtime: The user's choice of precision and backend.
        shown: Whether to show the progress of a download.

    Raises:
        TfswaError: The model is not known, cannot be downloaded, or is damaged.
    """
    from tfswa_sep import registry
    from tfswa_sep.inference.hardware import prefers_int8

    def find() -> ModelInfo:
        info = registry.find_model(name) if name else registry.default_model()
        return registry.with_precision(info, runtime.precision, prefer_int8=prefers_int8(runtime))

    info = find()
    fetch_early(info, runtime, shown=shown)
    # An address is pinned by now: look up its hash.
    return info if all(file.sha256 for file in info.files) else find()


def _parse_shard(text: str | None) -> tuple[int, int]:
    from tfswa_sep.batch import inputs

    try:
        return inputs.parse_shard(text)
    except ValueError:
        raise UsageError(f"invalid --shard '{text}': expected I/N, such as 2/3") from None


def _fetch_stdin(song: PlannedSong, opened: ExitStack) -> PlannedSong:
    from tfswa_sep.batch import inputs

    if str(song.path) != inputs.STDIN:
        return song
    from tfswa_sep.audio.atomic_file import temporary_folder

    return replace(song, path=inputs.save_stdin(opened.enter_context(temporary_folder())))
