"""How long `tfswa-sep eval` takes to score by BSSEval: python -m training.benchmark.evaluation FOLDER

FOLDER/<song>/<stem>.* are songs with their stems. Four methods are scored: the model `small`, the unseparated mixture
and two oracle masks; without BSSEval, by our BSSEval with every number of jobs, and by the museval package. The
output is a Markdown table; "BSSEval alone" is the CPU time beyond that of the run without it. CPU time is that of all
processes, so it can be compared on a busy machine, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tfswa_sep.evaluation.multitrack import find_songs
from training.benchmark.measure import Run, measure

OURS, PACKAGE = "museval", "museval-reference"
Setting = tuple[str | None, int]  # metrics, jobs
COLUMNS = ("metrics", "jobs", "time (s)", "CPU time (s)", "BSSEval alone (s)", "museval takes")


def time_settings(data: Path, jobs: Sequence[int]) -> dict[Setting, Run]:
    """Run the command once in each setting."""
    settings: list[Setting] = [(None, 1), *((OURS, count) for count in jobs), (PACKAGE, 1)]
    command = [sys.executable, "-m", "tfswa_sep", "eval", "--data", str(data), "--model", "small"]
    command += ["--baselines", "--threads", "1"]
    return {
        (metrics, count): measure(
            [*command, "--jobs", str(count), *(("--metrics", metrics) if metrics else ())],
            environment={"OMP_NUM_THREADS": "1"},
        )
        for metrics, count in settings
    }


def table(runs: dict[Setting, Run]) -> str:
    """The measurements in Markdown."""
    without = runs[None, 1].cpu
    slowest = runs[PACKAGE, 1].cpu - without
    rows = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1))]
    for (metrics, jobs), run in runs.items():
        spent = run.cpu - without
        rest = (f"{spent:.0f}", f"{slowest / spent:.1f} times as long") if metrics else ("", "")
        rows.append((metrics or "without BSSEval", str(jobs), f"{run.wall:.0f}", f"{run.cpu:.0f}", *rest))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument("--songs", type=int, default=10, help="number of songs (default 10)")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="scoring processes (default 1 2)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as chosen:
        for song in find_songs(options.data)[: options.songs]:
            folder = Path(chosen) / song.name
            folder.mkdir()
            for stem, file in song.files.items():
                (folder / f"{stem}{file.suffix}").symlink_to(file.absolute())
        print(table(time_settings(Path(chosen), options.jobs)))


if __name__ == "__main__":
    main()
