"""Benchmark the installed command and other separators as users run them: whole processes, start-up included.

    python -m training.benchmark --json benchmark.json --plot benchmark.svg     everything, side by side
    python -m training.benchmark --minutes 3 6 --backend auto --threads --peers        only our command
    python -m training.benchmark --minutes 60 --runs 1 --peers -- --stems vocals --format flac
    python -m training.benchmark --peers demucs openunmix --valid FOLDER        with the SDR on those songs

The test songs are a given song, looped. Arguments after `--` are passed to our command. Runs are interleaved, so
that other load on the machine affects all programs alike, and the median of each number is reported. Each peer
has its own virtual environment in the cache folder (about 1 GB); peers that cannot run here are listed with the
reason. Four stems of 60 minutes take 5 GB of disk as 32-bit float WAV.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import soundfile
from rich.console import Console

from tfswa_sep.evaluation.provenance import machine, versions
from training.benchmark.contenders import Contender, fill_in, find_command, our_contenders, score
from training.benchmark.measure import (
    BUSY_CORES,
    FailedCommandError,
    Run,
    busy_cores,
    measure,
    seconds_to_first_line,
)
from training.benchmark.peers import PEERS, PeerInstallError, install, peer_contenders
from training.benchmark.record import Record, measurement, plot, table

HELP_RUNS = 11


def make_song(source: Path, target: Path, *, minutes: float) -> None:
    """Loop `source` into a 16-bit WAV of that many minutes, with only one loop in memory."""
    loop, rate = soundfile.read(source, dtype="int16", always_2d=True)
    remaining = round(60 * minutes * rate)
    with soundfile.SoundFile(target, "w", rate, loop.shape[1], subtype="PCM_16") as song:
        while remaining > 0:
            song.write(loop[:remaining])
            remaining -= min(remaining, len(loop))


def measure_all(
    contenders: list[Contender],
    song: Path,
    *,
    minutes: float,
    runs: int,
    patience: float,
    scores: Mapping[str, dict[str, float]],
    console: Console,
) -> Record:
    """Run all contenders on a song in turns, `runs` times, or once if slower than `patience` seconds.

    Returns:
        The record's "measurements" (compared with the first contender), "not_run" and maximum "busy_cores".
    """
    finished: dict[Contender, list[Run]] = {each: [] for each in contenders}
    first_samples: dict[Contender, list[float]] = {each: [] for each in contenders}
    not_run: list[dict[str, str]] = []
    busiest = 0.0
    for turn in range(runs):
        busiest = max(busiest, busy_cores())
        for each in [each for each, past in finished.items() if not past or past[0].wall <= patience]:
            console.out(f"run {turn + 1} of {runs}: {each.label}, {minutes:g} min", highlight=False)
            try:
                with tempfile.TemporaryDirectory(dir=song.parent) as out:
                    command = fill_in(each.command, song=song, out=Path(out))
                    finished[each].append(measure(command, environment=each.environment))
                if each.first_sample:
                    command = fill_in(each.first_sample, song=song)
                    first_samples[each].append(seconds_to_first_line(command, environment=each.environment))
            except FailedCommandError as error:
                del finished[each]
                not_run.append({"name": each.label, "reason": str(error).splitlines()[-1]})
                console.out(f"{each.label} failed: {error}", highlight=False)
    ours = finished.get(contenders[0])
    baseline = statistics.median(run.wall for run in ours) if ours else None
    measurements = [
        measurement(
            each, minutes, past, first_samples[each], baseline=baseline, sdr=scores.get(each.without_threads)
        )
        for each, past in finished.items()
    ]
    return {"measurements": measurements, "not_run": not_run, "busy_cores": round(busiest, 2)}


def find_contenders(
    options: argparse.Namespace, command: str, console: Console
) -> tuple[list[Contender], list[Record]]:
    """Return the contenders, and the peers that cannot be installed."""
    contenders = our_contenders(
        command,
        backends=options.backend,
        precisions=options.precision,
        threads=options.threads,
        extra=options.extra,
    )
    not_installed: list[Record] = []
    for peer in PEERS:
        if peer.name not in options.peers:
            continue
        console.out(f"{peer.name}: environment in {options.cache / peer.name}", highlight=False)
        try:
            install(peer, options.cache)
        except PeerInstallError as error:
            not_installed.append({"name": peer.name, "reason": str(error)})
        else:
            contenders += peer_contenders(peer, options.cache, threads=options.threads, scorer=command)
    return contenders, not_installed


def score_all(contenders: list[Contender], data: Path, console: Console) -> dict[str, dict[str, float]]:
    """Score each program and setting once, whatever its threads: `Contender.without_threads` -> SDR per stem."""
    scores: dict[str, dict[str, float]] = {}
    for each in contenders:
        if not each.score or each.without_threads in scores:
            continue
        console.out(f"scoring {each.without_threads}", highlight=False)
        try:
            scores[each.without_threads] = score(each, data)
        except FailedCommandError as error:
            console.out(f"cannot score {each.without_threads}: {error}", highlight=False)
    return scores


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [peer.name for peer in PEERS]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tfswa-sep-benchmark"
    song = Path("examples/demo/demo.ogg")
    parser.add_argument("--song", type=Path, default=song, help="song to loop into the test songs")
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[1.0], help="lengths of the test songs in minutes"
    )
    parser.add_argument("--command", default="tfswa-sep", help="the installed command, or its path")
    parser.add_argument(
        "--backend",
        nargs="*",
        default=["onnx", "torch"],
        help="backends to measure besides the default setting",
    )
    parser.add_argument("--precision", nargs="+", help="default: all that the command supports")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="thread counts to measure")
    parser.add_argument("--runs", type=int, default=3, help="runs per setting; the median is reported")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="programs slower than this many seconds run only once (default: 120)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=names,
        default=names,
        help="peers to measure; no name means none (default: all)",
    )
    parser.add_argument("--valid", type=Path, help="songs as FOLDER/<song>/<stem>.wav, for the SDR")
    parser.add_argument("--cache", type=Path, default=cache, help="folder for the peers' environments")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    parser.add_argument("--plot", type=Path, help="also write a chart (SVG) to this file")
    parser.add_argument("extra", nargs="*", help="options for our command, after --")
    options = parser.parse_args(arguments)
    options.cache = options.cache.absolute()
    if not options.song.is_file():
        parser.error(f"no such song: {options.song}")
    if options.valid and not options.valid.is_dir():
        parser.error(f"no such folder: {options.valid}")
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options, console = parse(arguments), Console()
    command = find_command(options.command)
    console.out(machine(), highlight=False)
    busy = busy_cores()
    if busy > BUSY_CORES:
        console.out(
            f"Other processes keep {busy:.1f} cores busy: these timings will be too long.", highlight=False
        )
    startup = [measure([command, "--help"]).wall for _ in range(HELP_RUNS)]
    contenders, not_installed = find_contenders(options, command, console)
    record: Record = {
        "command": [Path(command).name, *options.extra],
        "song": options.song.name,
        "machine": machine(),
        "busy_cores": round(busy, 2),
        "versions": versions() | {peer.name: peer.version for peer in PEERS if peer.name in options.peers},
        "help_seconds": statistics.median(startup),
        "measurements": [],
        "not_run": not_installed,
    }
    scores = score_all(contenders, options.valid, console) if options.valid else {}
    with tempfile.TemporaryDirectory(prefix="tfswa-sep-benchmark-") as folder:
        for minutes in options.minutes:
            song = Path(folder) / f"song_{minutes:g}_minutes.wav"
            make_song(options.song, song, minutes=minutes)
            result = measure_all(
                contenders,
                song,
                minutes=minutes,
                runs=options.runs,
                patience=options.patience,
                scores=scores,
                console=console,
            )
            record["measurements"] += result["measurements"]
            record["not_run"] += result["not_run"]
            record["busy_cores"] = max(record["busy_cores"], result["busy_cores"])
            song.unlink()
    # Redirected output need not fit a terminal.
    (console if console.is_terminal else Console(width=200)).print(table(record))
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        options.plot.write_text(plot(record), encoding="utf-8")
    return 0 if record["measurements"] else 1


if __name__ == "__main__":
    sys.exit(main())
