"""Measure the installed command as its users meet it: whole processes, start-up and files included.

    python -m training.benchmark --minutes 3 6 --runs 3
    python -m training.benchmark --backend onnx torch --threads 1 2 --json benchmark.json
    python -m training.benchmark --minutes 6 60 --runs 1 -- --stems vocals --format flac

The test songs are a given song, looped. What comes after `--` goes to the command. For each setting:
wall-clock seconds, the real-time factor (wall-clock seconds a second of music), seconds of CPU, and the
highest resident memory of the process; the median of the runs. Four stems of 60 minutes take 5 GB of disk as
32-bit float WAV.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile

from tfswa_sep.evaluation.provenance import machine, versions

HELP_RUNS = 11
BUSY_LOAD = 0.3  # other work, in cores, above which timings are not to be trusted


@dataclass(frozen=True)
class Run:
    """One process from start to end."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, all threads
    memory: (
        int  # bytes, highest resident; at least this benchmark's own, which the kernel counts before the exec
    )


@dataclass(frozen=True)
class Measurement:
    """The runs of one setting."""

    minutes: float  # of music
    backend: str  # as asked for: "auto", "onnx" or "torch"
    threads: int | None  # None: the command's own choice
    runs: tuple[Run, ...]

    @property
    def median(self) -> Run:
        """The median of each number on its own."""
        return Run(
            wall=statistics.median(run.wall for run in self.runs),
            cpu=statistics.median(run.cpu for run in self.runs),
            memory=round(statistics.median(run.memory for run in self.runs)),
        )

    @property
    def real_time_factor(self) -> float:
        """Wall-clock seconds a second of music."""
        return self.median.wall / (60 * self.minutes)


def make_song(source: Path, target: Path, *, minutes: float) -> None:
    """Write `source`, looped, as a 16-bit WAV of that many minutes; only one loop is held in memory."""
    loop, rate = soundfile.read(source, dtype="int16", always_2d=True)
    left = round(60 * minutes * rate)
    with soundfile.SoundFile(target, "w", rate, loop.shape[1], subtype="PCM_16") as song:
        while left > 0:
            song.write(loop[:left])
            left -= min(left, len(loop))


def measure(command: list[str]) -> Run:
    """Run a command to its end. Raises RuntimeError with its last words if it fails."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {last}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Run(wall=wall, cpu=usage.ru_utime + usage.ru_stime, memory=usage.ru_maxrss * unit)


def find_command(name: str) -> str:
    """The path of an installed command: on the PATH, else beside this Python."""
    beside = Path(sys.executable).parent / name  # an absolute path stays itself
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None:
        raise SystemExit(
            f"no command {name!r} on the PATH nor beside {sys.executable}: install the package first"
        )
    return found


def benchmark(
    command: str,
    song: Path,
    *,
    minutes: list[float],
    backends: list[str],
    threads: list[int | None],
    runs: int,
    extra: list[str],
    folder: Path,
) -> list[Measurement]:
    """Measure every combination and print each when it is done; `folder` holds songs and stems meanwhile."""
    found = []
    for length in minutes:
        long_song = folder / f"song_{length:g}_minutes.wav"
        make_song(song, long_song, minutes=length)
        for backend in backends:
            for count in threads:
                options = [
                    "--backend",
                    backend,
                    "--quiet",
                    *(["--threads", str(count)] if count else []),
                    *extra,
                ]
                done = []
                for _ in range(runs):
                    with tempfile.TemporaryDirectory(dir=folder) as out:
                        done.append(measure([command, str(long_song), "--out", out, *options]))
                found.append(Measurement(length, backend, count, tuple(done)))
                print(_row(found[-1]), flush=True)
        long_song.unlink()
    return found


def _row(measurement: Measurement) -> str:
    run = measurement.median
    setting = f"{measurement.minutes:>7g} {measurement.backend:>8} {measurement.threads or 'auto':>8}"
    factor, megabytes = measurement.real_time_factor, run.memory / 1e6
    return f"{setting} {run.wall:>9.2f} {factor:>8.4f} {run.cpu:>9.2f} {megabytes:>9.0f}"


def main() -> None:
    """Parse the options, measure, print the table and write the record."""
    parser = argparse.ArgumentParser(
        description="Time and memory of the installed command, as whole processes."
    )
    parser.add_argument(
        "--song", type=Path, default=Path("examples/demo.ogg"), help="looped into the test songs"
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[3.0], help="lengths of the test songs")
    parser.add_argument("--command", default="tfswa-sep", help="the installed command, or its path")
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument(
        "--threads", type=int, nargs="+", default=None, help="default: the command's own choice"
    )
    parser.add_argument("--runs", type=int, default=3, help="of each setting; the median counts")
    parser.add_argument("--json", type=Path, default=None, help="also write every run to this file")
    parser.add_argument("extra", nargs="*", help="after --: options for the command")
    options = parser.parse_args()
    if not options.song.is_file():
        raise SystemExit(f"no such song: {options.song}")

    command = find_command(options.command)
    load = os.getloadavg()[0]
    print(f"{machine()}; other load {load:.2f}")
    if load > BUSY_LOAD:
        print("The machine is busy with other work: these timings are too long.")
    startup = [measure([command, "--help"]) for _ in range(HELP_RUNS)]
    start_median = statistics.median(run.wall for run in startup)
    print(f"{Path(command).name} --help: {start_median:.3f} s (median of {HELP_RUNS})")
    print("minutes  backend  threads  wall (s)      RTF   CPU (s)  peak (MB)")
    with tempfile.TemporaryDirectory(prefix="tfswa-sep-benchmark-") as folder:
        measurements = benchmark(
            command,
            options.song,
            minutes=options.minutes,
            backends=options.backend,
            threads=options.threads or [None],
            runs=options.runs,
            extra=options.extra,
            folder=Path(folder),
        )
    record = {
        "command": [Path(command).name, *options.extra],
        "song": options.song.name,
        "machine": machine(),
        "other_load": load,
        "versions": versions(),
        "help_seconds": start_median,
        "measurements": [
            {**asdict(found), "real_time_factor": found.real_time_factor, "median": asdict(found.median)}
            for found in measurements
        ],
    }
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    else:
        print(json.dumps(record))


if __name__ == "__main__":
    main()
