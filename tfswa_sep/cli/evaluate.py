"""`tfswa-sep eval`: separate and score songs whose stems are known, and compare methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tfswa_sep.cli.default_command import RunByDefault
from tfswa_sep.cli.help import METHODS, RESULTS, SONGS, Command, option
from tfswa_sep.cli.progress import show_progress
from tfswa_sep.cli.separate import fetch_model
from tfswa_sep.cli.shared_options import Debug, Json, Offline, Quiet, with_options
from tfswa_sep.cli.terminal import print_error, print_tables, say
from tfswa_sep.errors import OutputError, UsageError, advice
from tfswa_sep.options import Runtime

if TYPE_CHECKING:
    from tfswa_sep.evaluation.methods import Method
    from tfswa_sep.evaluation.multitrack import Song
    from tfswa_sep.evaluation.results import Evaluation

# as in evaluation/scoring.py, which is too heavy to load here
MUSEVAL, REFERENCE, FAST, PERCEPTUAL, PEASS = "museval", "museval-reference", "fast", "perceptual", "peass"
KNOWN_METRICS = (MUSEVAL, REFERENCE, FAST, PERCEPTUAL, PEASS)
DOWNLOAD = "download"  # in place of a folder of --musdb

app = typer.Typer(
    cls=RunByDefault, rich_markup_mode=None, epilog="All scoring options: tfswa-sep eval run --help"
)


@app.callback()
def _evaluation() -> None:
    """Score separation quality and compare methods.

    Scores are SDR and its relatives in dB (higher is better); "kept" is how much of the true stem is in the
    estimate (ideally 1), "leaked" how much of all other stems (ideally 0).
    """


Data = Annotated[
    Path | None,
    option(
        SONGS,
        "Reference stems: FOLDER/<song>/<stem>.wav (or flac, ogg, opus, mp3) or FOLDER/<song>.stem.mp4.",
        metavar="FOLDER",
    ),
]
Musdb = Annotated[
    str | None,
    option(
        SONGS,
        "MUSDB18 (.stem.mp4) or MUSDB18-HQ folder; scored with museval by default. "
        "download: its 7-second excerpts, 147 MB.",
        metavar="FOLDER",
    ),
]
Subset = Annotated[Literal["test", "train"], option(SONGS, "MUSDB18 subset.")]
Exclude = Annotated[str | None, option(SONGS, "Skip these songs, such as 'Music Delta*'.", metavar="GLOB")]
Apart = Annotated[
    str | None, option(SONGS, "Score these songs, but leave them out of the averages.", metavar="GLOB")
]
Models = Annotated[
    list[str] | None, option(METHODS, "Model to evaluate; repeatable.", "--model", "-m", metavar="MODEL")
]
Estimates = Annotated[
    list[Path] | None,
    option(METHODS, "Stems from any separator, as FOLDER/<song>/<stem>.wav; repeatable.", metavar="FOLDER"),
]
Baselines = Annotated[
    bool, option(METHODS, "Also score the mixture and two oracle masks.", "--baselines", "--oracle")
]
Live = Annotated[
    Literal["low", "normal", "high"] | None, option(METHODS, "Separate as `live` does, with this --latency.")
]
Metrics = Annotated[
    str | None,
    option(
        RESULTS,
        "museval: BSSEval v4, the official numbers; museval-reference: by the museval package, slow. "
        "fast: SIR and SAR within 0.7 dB of museval's. perceptual: logWMSE, SI-SAR, bleedless, fullness. "
        "peass: predicted ratings, 15 s per second and stem.",
        metavar="NAME,...",
    ),
]
Jobs = Annotated[int, option(RESULTS, "Scoring processes.", "--jobs", "-j", min=1, metavar="N")]
Out = Annotated[
    Path | None, option(RESULTS, "Keep the separated stems here.", "--out", "-o", metavar="FOLDER")
]
Record = Annotated[
    Path | None, option(RESULTS, "Write the full results to this file.", "--json", metavar="FILE")
]
Report = Annotated[
    Path | None,
    option(RESULTS, "Write results.json, .csv, .md, .tex and report.html here.", metavar="FOLDER"),
]
Resume = Annotated[
    bool, option(RESULTS, "Continue an interrupted run with the same --json or --report.", "--resume")
]


@app.command("run", cls=Command)
@with_options
def evaluate(
    data: Data = None,
    musdb: Musdb = None,
    subset: Subset = "test",
    exclude: Exclude = None,
    apart: Apart = None,
    model: Models = None,
    estimates: Estimates = None,
    baselines: Baselines = False,
    live: Live = None,
    metrics: Metrics = None,
    jobs: Jobs = 1,
    out: Out = None,
    record: Record = None,
    report: Report = None,
    resume: Resume = False,
    runtime: Runtime = Runtime(precision="fp32"),
    offline: Offline = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Separate songs with known stems and score the result.

    Prints each stem's SDR in dB, its gain over the unseparated mixture, and how much of the true stem was
    kept (ideally 1) and of the other stems leaked (ideally 0). Models run in fp32 unless --precision says
    otherwise, so that scores are reproducible.
    """
    if (data is None) == (musdb is None):
        raise UsageError("give either --data FOLDER or --musdb FOLDER (or --musdb download)")
    if out is not None and estimates and not model:
        raise UsageError("--estimates scores existing stems and writes none: remove --out")
    if resume and record is None and report is None:
        raise UsageError("--resume needs the results to continue: add --json FILE or --report FOLDER")

    from tfswa_sep.evaluation import run
    from tfswa_sep.evaluation.optional_packages import need
    from tfswa_sep.evaluation.peass import check_installed
    from tfswa_sep.evaluation.report.tables import summary_tables
    from tfswa_sep.evaluation.results import read_evaluation

    wanted = _metrics(metrics if metrics is not None or musdb is None else MUSEVAL)
    if PEASS in wanted:
        check_installed()
    if report is not None:
        for package in ("jinja2", "PIL"):  # before hours of work
            need(package, "--report")
    name, songs = _songs(data, _musdb_folder(musdb, shown=not quiet), subset, exclude)
    methods = _methods(
        model, estimates, baselines, songs, out=out, runtime=runtime, live=live, shown=not quiet
    )
    files = ([record] if record else []) + ([report / "results.json"] if report else [])
    earlier = next((read_evaluation(file) for file in files if resume and file.exists()), None)

    with show_progress(shown=not quiet, songs=len(songs)) as progress:
        current = ""

        def on_progress(song: str, method: str, seconds: float, total: float) -> None:
            nonlocal current
            if current != f"{song}: {method}":
                progress.remove(current)
                current = f"{song}: {method}"
            progress.update(current, seconds, total)

        def on_song(evaluation: Evaluation) -> None:
            _write_record(evaluation, files)
            done = max((len(method.songs) for method in evaluation.methods), default=0)
            progress.count(done, lambda width: summary_tables(evaluation, width=width))

        evaluation = run.evaluate(
            songs, methods, data=name, metrics=wanted, apart=apart, jobs=jobs, earlier=earlier,
            on_progress=on_progress, on_song=on_song,
        )  # fmt: skip
    _write_record(evaluation, files)
    if report is not None:
        _write_report(evaluation, report, songs, methods)
    if not quiet:
        _print_evaluation(evaluation)


@app.command("compare", cls=Command)
def compare(
    records: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="Results written by `eval --json`.")
    ],
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="sdr, si_sdr, museval_sdr... [default: museval_sdr, else sdr]."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare methods by paired differences.

    Reports the mean difference over the songs, with a 95% bootstrap interval.

    Every method is compared with the first method of the first file. Songs are matched by name.
    """
    from tfswa_sep.evaluation.compare import compare_records

    comparison = compare_records(records, metric=metric)
    for warning in comparison.warnings:
        print_error(f"note: {warning}")
    if as_json:
        rows = [
            {**asdict(difference), "verdict": difference.verdict} for difference in comparison.differences
        ]
        say(json.dumps({"differences": rows, "warnings": comparison.warnings}, indent=2))
        return
    from tfswa_sep.evaluation.report.tables import difference_table

    seconds = dict.fromkeys(difference.second for difference in comparison.differences)
    groups = ([each for each in comparison.differences if each.second == second] for second in seconds)
    print_tables(*map(difference_table, groups))


@app.command("listen", cls=Command)
def listen(
    first: Annotated[Path, typer.Argument(metavar="A", help="An audio file, or FOLDER/<song>/<stem>.wav.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same song by another method.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="HTML page to write.")] = Path(
        "listen.html"
    ),
    reference: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Reference stems, to play alongside.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=60, metavar="S", help="Seconds per excerpt, 1 to 60.")
    ] = 8,
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of pairs.")] = 12,
    debug: Debug = False,
) -> None:
    """Write a blind A/B listening test.

    The test is one HTML file that works offline in any browser.

    Both sides use the same excerpts, matched in loudness and played in sync. Which is which stays hidden
    until the answers are exported; `eval listen-results` analyses them.
    """
    from tfswa_sep.evaluation.listening.page import listening_page

    _write(out, listening_page(first, second, reference=reference, seconds=seconds, trials=trials))
    say(str(out))


@app.command("listen-results", cls=Command)
def listen_results(
    answers: Annotated[
        list[Path],
        typer.Argument(metavar="ANSWERS.json", help="Files that listeners exported from the page."),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Analyse the answers of a listening test.

    Prints how often each method is preferred, per stem, with a 95% interval and a sign test.

    Name the files of one test, one or more per listener. "No difference" counts half for each method.
    """
    from tfswa_sep.evaluation.listening.answers import read_answers

    results = read_answers(answers)
    if as_json:
        rows = [{**asdict(each), "verdict": each.verdict} for each in results.preferences]
        say(json.dumps({**asdict(results), "preferences": rows}, indent=2))
        return
    from tfswa_sep.evaluation.report.tables import preference_table

    print_tables(preference_table(results))


def _write_record(evaluation: Evaluation, files: list[Path]) -> None:
    for file in files:
        _write(file, evaluation.to_json())


def _write_report(evaluation: Evaluation, folder: Path, songs: list[Song], methods: list[Method]) -> None:
    from tfswa_sep.evaluation.report.excerpts import examples
    from tfswa_sep.evaluation.report.html import html_report
    from tfswa_sep.evaluation.report.paper import latex, markdown, paper_tables

    tables = paper_tables(evaluation)
    _write(folder / "results.csv", evaluation.to_csv())
    _write(folder / "results.md", markdown(tables))
    _write(folder / "results.tex", latex(tables))
    _write(folder / "report.html", html_report(evaluation, examples(evaluation, songs, methods)))


def _print_evaluation(evaluation: Evaluation) -> None:
    from tfswa_sep.evaluation.report.tables import score_table, song_tables, summary_tables
    from tfswa_sep.evaluation.results import BASELINE

    width = _terminal_width()
    methods = [method for method in evaluation.methods if method.kind != BASELINE]
    tables = [table for method in methods for table in song_tables(method, evaluation.data, width=width)]
    if len(evaluation.methods) > 1 or len(evaluation.metrics) > 1:
        tables += summary_tables(evaluation, width=width)
    print_tables(*tables, score_table(evaluation))


def _terminal_width() -> int | None:
    """Characters per line of a terminal; None if stdout is not one."""
    from rich.console import Console

    return Console().width if sys.stdout.isatty() else None


def _metrics(names: str | None) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip()))
    if unknown := [name for name in wanted if name not in KNOWN_METRICS]:
        raise UsageError(f"unknown metric {unknown[0]!r}: choose from {', '.join(KNOWN_METRICS)}")
    if {MUSEVAL, REFERENCE} <= set(wanted):
        raise UsageError(f"{MUSEVAL} and {REFERENCE} are the same numbers: choose one")
    return wanted


def _musdb_folder(given: str | None, *, shown: bool) -> Path | None:
    """The folder of --musdb; "download" is that of the excerpts, which are downloaded at first use."""
    if given != DOWNLOAD:
        return None if given is None else Path(given)
    from tfswa_sep.evaluation.musdb import download_excerpts, excerpts_folder

    if not shown or excerpts_folder().is_dir():
        return download_excerpts()
    print_error(f"downloading MUSDB18's excerpts to {excerpts_folder()}")
    with show_progress(shown=True, downloads=True) as progress:
        return download_excerpts(lambda done, total: progress.update("excerpts", done, total))


def _songs(data: Path | None, musdb: Path | None, subset: str, exclude: str | None) -> tuple[str, list[Song]]:
    from tfswa_sep.evaluation.multitrack import find_songs, names_without

    if musdb is not None:
        from tfswa_sep.evaluation.musdb import find_musdb

        name, songs = find_musdb(musdb, subset=subset)
    else:
        assert data is not None
        name, songs = data.resolve().name, find_songs(data)
    # Part of the name, so that records of different songs are not taken for the same ones.
    name = name if exclude is None else f"{name} without {exclude}"
    kept = names_without((song.name for song in songs), exclude)
    return name, [song for song in songs if song.name in kept]


def _methods(
    models: list[str] | None,
    estimates: list[Path] | None,
    baselines: bool,
    songs: list[Song],
    *,
    out: Path | None,
    runtime: Runtime,
    live: str | None,
    shown: bool,
) -> list[Method]:
    """The models and folders that were named, else the default model; then the baselines."""
    from tfswa_sep import registry
    from tfswa_sep.evaluation.methods import FolderMethod, MixtureBaseline, ModelMethod, OracleBaseline

    for given in models or []:
        registry.find_model(given)  # a wrong name is reported before anything is downloaded
    names: Sequence[str | None] = models or ([] if estimates else [None])
    methods: list[Method] = []
    for name in names:
        info = fetch_model(name, runtime, shown=shown)
        place = out / info.name if out is not None and len(names) > 1 else out
        methods.append(ModelMethod(info, out=place, runtime=runtime, live=live))
    folders = [folder.resolve() for folder in estimates or []]
    for folder in folders:
        alone = sum(other.name == folder.name for other in folders) == 1
        methods.append(FolderMethod(folder, folder.name if alone else str(folder), alone=len(songs) == 1))
    if baselines:
        methods += [MixtureBaseline(), OracleBaseline(binary=False), OracleBaseline(binary=True)]
    return methods


def _write(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    from tfswa_sep.audio.atomic_file import write_text

    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}): {advice(error)}") from error
