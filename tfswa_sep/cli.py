"""The command line: options, what is said while working, and one line with the right exit code on failure.

What a command found goes to stdout, as one JSON object with --json; progress, warnings and the one line of an
error go to stderr. Only this module prints or exits. Nothing heavy is imported before it is needed, so that
--help, an unknown model and a missing song are answered at once.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.main

import tfswa_sep
from tfswa_sep import batch, terminal
from tfswa_sep.command_groups import ListFirst, SongsFirst
from tfswa_sep.errors import BatchError, DeviceError, ModelError, OutputError, UsageError
from tfswa_sep.options import BackendName, Debug, Device, Json, Model, Quiet, Threads
from tfswa_sep.terminal import PROGRAM, progress_bar

COMMANDS = ("separate", "models", "eval")
EXAMPLES = f"""Examples:

\b
  {PROGRAM} song.mp3                          four stems, in the folder song/
  {PROGRAM} song.mp3 --stems vocals           only the voice
  {PROGRAM} song.mp3 --stems vocals,accompaniment
                                              the voice, and all the rest
  {PROGRAM} *.flac --out stems --format flac  many songs, smaller files
"""


# Without rich's markup: its import takes 0.2 s, more than all the rest of --help.
app = typer.Typer(
    name=PROGRAM,
    cls=SongsFirst,
    subcommand_metavar="SONG... | COMMAND",
    epilog=EXAMPLES + f"\nAll options: {PROGRAM} separate --help",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
models_app = typer.Typer(cls=ListFirst, rich_markup_mode=None)
app.add_typer(models_app, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(PROGRAM, tfswa_sep.__version__)
        raise typer.Exit


@app.callback()
def _front_door(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Separate songs into vocals, drums, bass and other.

    Give it a song: its stems are written to a folder with the song's name. It needs no network and no
    graphics card.
    """


@app.command(epilog=EXAMPLES)
def separate(
    songs: Annotated[
        list[Path], typer.Argument(metavar="SONG...", help="Audio or video files.", show_default=False)
    ],
    stems: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="vocals, drums, bass, other, accompaniment (all but the vocals) or a sum such as "
            "drums+bass; several with commas [default: all four].",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the stems go.")] = Path(),
    name: Annotated[
        str, typer.Option(metavar="PATTERN", help="Names of the files under --out.")
    ] = "{track}/{stem}{ext}",
    audio_format: Annotated[Literal["wav", "flac"], typer.Option("--format", help="Kind of files.")] = "wav",
    bit_depth: Annotated[
        Literal["16", "24", "32f"] | None,
        typer.Option(help="Bits a sample; 32f cannot clip [default: 32f, and 24 for flac]."),
    ] = None,
    rescale: Annotated[
        bool,
        typer.Option("--rescale", help="Where a stem would clip, turn all stems of the song down alike."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite/--no-overwrite", help="Replace stems of an earlier run, or refuse to."),
    ] = True,
    model: Model = None,
    backend: BackendName = "auto",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say how long each song took.")] = False,
    debug: Debug = False,
) -> None:
    """Separate songs into stems.

    Each song gets a folder with its name. Stems have the song's length, sample rate, channels and
    loudness, and add up to the song. A stem is written whole or not at all.
    """
    from tfswa_sep import registry

    info = registry.find_model(model) if model else registry.default_model()
    # Damage is told before anything heavy loads; a download waits until the backend is chosen.
    sure = [f.backend for f in info.files if len(info.files) == 1 or f.where.startswith("bundled:")]
    for needed in sure if backend == "auto" else [backend]:
        registry.fetch(info, needed)
    planned = batch.plan_songs(songs, name)
    if len(planned) == 1:
        batch.check_song(songs[0], COMMANDS)

    from tfswa_sep.separator import Separator

    separator = Separator(info, backend=backend, device=device, threads=threads)
    silent = quiet or as_json
    if not silent and any(song.path.exists() for song in planned):
        ran = separator.backend
        print(f"model {info.name}, backend {ran.name}, device {ran.device}", flush=True)
    done: list[dict[str, Any]] = []
    failed: list[str] = []
    for song in planned:
        try:
            batch.check_song(song.path, COMMANDS)
            began = time.perf_counter()
            with progress_bar(song.path.name, shown=not silent) as on_progress:
                result = separator.separate_file(
                    song.path,
                    out=out,
                    stems=stems,
                    audio_format=audio_format,
                    bit_depth=bit_depth,
                    rescale=rescale,
                    name=song.pattern,
                    overwrite=overwrite,
                    on_progress=on_progress,
                )
        except (UsageError, ModelError, DeviceError, MemoryError):
            raise  # every other song would meet it too
        except Exception as error:
            if len(planned) == 1:
                raise
            failed.append(str(song.path))
            done.append({"song": str(song.path), "error": terminal.report(error, debug=debug)})
            continue
        done.append(batch.describe(song, result))
        if not quiet:
            for warning in done[-1]["warnings"]:
                terminal.say_error(f"note: {warning}")
        if not silent:
            print(*result.files.values(), sep="\n", flush=True)
        if not silent and verbose:
            spent = time.perf_counter() - began
            print(f"{result.seconds:.1f} s of music took {spent:.1f} s", flush=True)
    if as_json:
        print(json.dumps({"songs": done}, indent=2))
    if failed:
        terminal.report(BatchError(f"{len(failed)} of {len(planned)} songs failed: {', '.join(failed)}"))
        raise typer.Exit(BatchError.exit_code)


@models_app.callback()
def _models() -> None:
    """See what models there are, and where their files lie."""


@models_app.command("list")
def list_models(as_json: Json = False, debug: Debug = False) -> None:
    """List the models: what they separate, how well, and on what terms."""
    from tfswa_sep import registry

    models = registry.load_registry().values()
    if as_json:
        print(json.dumps({"models": [asdict(model) for model in models]}, indent=2))
        return
    for model in models:
        print(f"{model.name}{' (the default)' if model.default else ''}")
        for label, text in registry.describe(model):
            print(textwrap.fill(text, 80, initial_indent=f"  {label:<9} ", subsequent_indent=" " * 12))


@models_app.command("path")
def model_path(
    name: Annotated[str, typer.Argument(help="A name that `models` lists.")],
    backend: Annotated[Literal["onnx", "torch"], typer.Option(help="Which of the model's files.")] = "onnx",
    debug: Debug = False,
) -> None:
    """Show where a model's file lies; it is fetched if it has to be, and checked."""
    from tfswa_sep import registry

    print(registry.fetch(registry.find_model(name), backend))


@app.command("eval")
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


def main() -> None:
    """The `tfswa-sep` command: run what the process's arguments say, and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code. Nothing that goes wrong comes out as an exception."""
    command = typer.main.get_command(app)
    return terminal.run(
        lambda: command.main(list(arguments), prog_name=PROGRAM, standalone_mode=False),
        debug="--debug" in arguments,
        as_json="--json" in arguments and "eval" not in arguments[:1],  # there it takes a file
    )
