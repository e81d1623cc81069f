"""`tfswa-sep separate`, the command that may be left out: songs in, stems out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tfswa_sep.cli.shared_options import BackendName, Debug, Device, Model, Offline, Precision, Quiet, Threads
from tfswa_sep.cli.terminal import progress_bars
from tfswa_sep.errors import BatchError, UsageError

if TYPE_CHECKING:
    from tfswa_sep.batch.plan import PlannedSong


def separate(
    context: typer.Context,
    songs: Annotated[
        list[str],
        typer.Argument(
            metavar="SONG...", help="Audio or video files, folders of them, or -.", show_default=False
        ),
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
    audio_format: Annotated[
        Literal["wav", "flac", "mp3", "ogg", "opus", "m4a"],
        typer.Option("--format", metavar="KIND", help="wav, flac, mp3, ogg, opus or m4a."),
    ] = "wav",
    bit_depth: Annotated[
        Literal["16", "24", "32f"] | None,
        typer.Option(help="Bits a sample; 32f cannot clip [default: 32f, and 24 for flac]."),
    ] = None,
    bitrate: Annotated[
        int | None,
        typer.Option(
            metavar="KBIT/S", help="Of mp3, ogg, opus, m4a [default: mp3 320, ogg 256, opus 192, m4a 256]."
        ),
    ] = None,
    rescale: Annotated[
        bool,
        typer.Option("--rescale", help="Where a stem would clip, turn all stems of the song down alike."),
    ] = False,
    exact_sum: Annotated[
        bool,
        typer.Option("--exact-sum", help="Have the stems add up to the song exactly: the last gives way."),
    ] = False,
    stem_file: Annotated[
        bool, typer.Option("--stem-file", help="Write SONG.stem.mp4 too, for Traktor and the like.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into folders of folders; --out mirrors them.")
    ] = False,
    downmix: Annotated[bool, typer.Option("--downmix", help="Mix surround sound down to stereo.")] = False,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Take what is there of a song that is cut short.")
    ] = False,
    overwrite: Annotated[
        bool | None,
        typer.Option(
            "--overwrite/--no-overwrite",
            help="Do finished songs again; or never replace a stem [default: skip finished songs].",
            show_default=False,
        ),
    ] = None,
    at_once: Annotated[
        int, typer.Option("--jobs", "-j", min=1, metavar="N", help="Songs at once, a process each.")
    ] = 1,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N parts of the songs, for several machines."),
    ] = None,
    model: Model = None,
    backend: BackendName = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    offline: Offline = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line and song, for programs.")
    ] = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say how long each song took.")] = False,
    debug: Debug = False,
) -> None:
    """Separate songs into stems.

    Each song gets a folder with its name. Stems have the song's length, sample rate, channels and
    loudness, and add up to the song. A stem is written whole or not at all.
    """
    from tfswa_sep import registry
    from tfswa_sep.batch import inputs, plan, workers
    from tfswa_sep.cli.separate_report import SeparateReport
    from tfswa_sep.inference.hardware import prefers_int8

    commands = list(getattr(context.parent and context.parent.command, "commands", ()))

    def find_model() -> registry.ModelInfo:
        info = registry.find_model(model) if model else registry.default_model()
        return registry.with_precision(info, precision, prefer_int8=prefers_int8(device))

    info = find_model()
    # Damage is told before anything heavy loads; a download waits until the backend is chosen.
    sure = [f.backend for f in info.files if len(info.files) == 1 or f.where.startswith("bundled:")]
    for needed in dict.fromkeys(sure) if backend == "auto" else [backend]:
        registry.fetch(info, needed)
    if not all(file.sha256 for file in info.files):
        info = find_model()  # an address is pinned by now, with what it held
    part, parts = _parse_shard(shard)
    found = inputs.find_songs(songs, recursive=recursive)
    if len(found) == 1 and str(found[0].path) != inputs.STDIN:
        plan.check_song(found[0].path, commands)
    planned = plan.plan_songs(found, name)[part - 1 :: parts]
    work = plan.Work(
        model=info,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads or workers.threads_each(min(at_once, len(planned))),
        out=out,
        overwrite=overwrite,
        keep=frozenset(realpath(song.path) for song in found),
        options={
            "name": name,
            "stems": stems,
            "audio_format": audio_format,
            "bit_depth": bit_depth,
            "bitrate": bitrate,
            "rescale": rescale,
            "exact_sum": exact_sum,
            "stem_file": stem_file,
            "downmix": downmix,
            "allow_truncated": allow_truncated,
        },
    )
    report = SeparateReport(count=len(planned), as_json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    with ExitStack() as opened:
        planned = [_fetch_stdin(song, opened) for song in planned]
        bars = opened.enter_context(progress_bars(shown=not quiet and not as_json))
        numbers = {song: number for number, song in enumerate(planned, 1)}

        def label(song: PlannedSong) -> str:
            return f"[{numbers[song]}/{len(planned)}] {song.name}" if len(planned) > 1 else song.name

        def show(song: PlannedSong, done: float, total: float | None) -> None:
            if bars:
                bars.update(label(song), done, total)

        outcomes = workers.run_songs(
            planned,
            work,
            check=lambda song: plan.check_song(song.path, commands),
            jobs=at_once,
            on_progress=show,
        )
        for outcome in outcomes:
            if outcome.error and len(planned) == 1:
                raise outcome.error
            with bars.away() if bars else ExitStack():
                if bars:
                    bars.remove(label(outcome.song))
                report.tell(outcome)
    report.sum_up()
    if report.failed:
        raise typer.Exit(BatchError.exit_code)


def _parse_shard(text: str | None) -> tuple[int, int]:
    from tfswa_sep.batch import inputs

    try:
        return inputs.parse_shard(text)
    except ValueError:
        raise UsageError(f"--shard '{text}' is no part: say 1/3, 2/3 or 3/3 on three machines") from None


def _fetch_stdin(song: PlannedSong, opened: ExitStack) -> PlannedSong:
    from tfswa_sep.batch import inputs

    if str(song.path) != inputs.STDIN:
        return song
    import tempfile

    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tfswa-sep-")))
    return replace(song, path=inputs.keep_stdin(folder))
