"""`tfswa-sep separate`, the command that may be left out: songs in, stems out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tfswa_sep import batch, terminal
from tfswa_sep.errors import BatchError, DeviceError, ModelError, UsageError
from tfswa_sep.options import BackendName, Debug, Device, Json, Model, Offline, Quiet, Threads
from tfswa_sep.terminal import progress_bar


def separate(
    context: typer.Context,
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
    offline: Offline = False,
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

    commands = list(getattr(context.parent and context.parent.command, "commands", ()))
    info = registry.find_model(model) if model else registry.default_model()
    # Damage is told before anything heavy loads; a download waits until the backend is chosen.
    sure = [f.backend for f in info.files if len(info.files) == 1 or f.where.startswith("bundled:")]
    for needed in sure if backend == "auto" else [backend]:
        registry.fetch(info, needed)
    planned = batch.plan_songs(songs, name)
    if len(planned) == 1:
        batch.check_song(songs[0], commands)

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
            batch.check_song(song.path, commands)
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
