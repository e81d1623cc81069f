"""The benchmark's record, and the table and plot made from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from rich.table import Table
from rich.text import Text

from training.benchmark.contenders import Contender
from training.benchmark.measure import BUSY_CORES, Run

Record = dict[str, Any]

_COLUMNS = (
    "program", "stems", "backend", "precision", "threads", "time (s)", "real-time factor", "against ours",
    "first sample (s)", "memory (MB)", "model (MB)", "SDR (dB)",
)  # fmt: skip
_WIDTH, _ROW, _LEFT = 900, 22, 270  # px


def measurement(
    contender: Contender,
    minutes: float,
    runs: Sequence[Run],
    first_samples: Sequence[float],
    *,
    baseline: float | None,
    sdr: dict[str, float] | None = None,
) -> Record:
    """Summarize one contender on one song: all runs, and the median of each number.

    Args:
        contender: The program with its settings.
        minutes: Length of the song.
        runs: All runs.
        first_samples: Seconds to the first samples, per run; empty for programs that cannot stream.
        baseline: Median seconds of the contender to compare with; None if it failed.
        sdr: SDR of each stem in dB.
    """
    wall = statistics.median(run.wall for run in runs)
    return {
        "name": contender.name,
        "stems": contender.stems,
        "weights": contender.weights,
        "backend": contender.backend,
        "precision": contender.precision,
        "threads": contender.threads,
        "minutes": minutes,
        "runs": [asdict(run) for run in runs],
        "first_sample_runs": list(first_samples),
        "median": {
            "wall": wall,
            "cpu": statistics.median(run.cpu for run in runs),
            "memory": round(statistics.median(run.memory for run in runs)),
            "first_sample": statistics.median(first_samples) if first_samples else wall,
        },
        "real_time_factor": wall / (60 * minutes),
        "ratio": wall / baseline if baseline else None,
        "model_bytes": contender.model_bytes,
        "sdr": sdr,
    }


def table(record: Record) -> Table:
    """Make a table with one row per contender and song length, and notes below it."""
    rows, notes = record["measurements"], []
    if any(row["weights"] == "random" for row in rows):
        notes.append("* random weights of the same shape: speed and memory only")
    if any(not row["first_sample_runs"] for row in rows):
        notes.append("first sample in brackets: no streaming, the stems are written at the end")
    if record["busy_cores"] > BUSY_CORES:
        notes.append(
            f"other work kept up to {record['busy_cores']:.1f} cores busy: these timings are too long"
        )
    notes += [f"not run: {each['name']}: {each['reason']}" for each in record["not_run"]]
    lengths = ", ".join(f"{minutes:g}" for minutes in dict.fromkeys(row["minutes"] for row in rows))
    result = Table(title=f"Songs of {lengths} min", caption=Text("\n".join(notes)), caption_justify="left")
    for column in _COLUMNS:
        result.add_column(
            column, justify="left" if column in ("program", "backend", "precision") else "right"
        )
    for row in rows:
        median, sdr, size = row["median"], row["sdr"], row["model_bytes"]
        first = f"{median['first_sample']:.1f}"
        result.add_row(
            row["name"] + ("*" if row["weights"] == "random" else ""),
            str(row["stems"]),
            row["backend"],
            row["precision"],
            str(row["threads"] or "auto"),
            f"{median['wall']:.1f}",
            f"{row['real_time_factor']:.3f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            first if row["first_sample_runs"] else f"({first})",
            f"{median['memory'] / 1e6:.0f}",
            "-" if size is None else f"{size / 1e6:.1f}",
            "-" if not sdr else " ".join(f"{stem} {value:.2f}" for stem, value in sdr.items()),
        )
    return result


def plot(record: Record) -> str:
    """Draw an SVG bar chart of the real-time factors on a logarithmic scale; "" without measurements."""
    rows = record["measurements"]
    if not rows:
        return ""
    logs = [math.log10(row["real_time_factor"]) for row in rows]
    low, high = math.floor(min(logs) - 0.1), math.ceil(max(logs) + 0.1)
    height = _ROW * len(rows) + 60

    def x(log: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 60) * (log - low) / (high - low)

    parts = []
    for power in range(low, high + 1):
        line = "#c33" if power == 0 else "#ddd"  # real time
        parts.append(f'<path d="M{x(power):.1f} 24V{height - 30}" stroke="{line}"/>')
        parts.append(
            f'<text x="{x(power):.1f}" y="{height - 14}" text-anchor="middle">{10.0**power:g}</text>'
        )
    for number, (row, log) in enumerate(zip(rows, logs, strict=True)):
        y = 30 + number * _ROW
        label = [row["name"], row["backend"], row["precision"], f"{row['minutes']:g} min"]
        if row["threads"]:
            label.append(f"{row['threads']} thr")
        colour = "#36c" if row["name"] == rows[0]["name"] else "#999"
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(" ".join(label))}</text>')
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{x(log) - _LEFT:.1f}" height="{_ROW - 6}" fill="{colour}"/>'
        )
        parts.append(f'<text x="{x(log) + 6:.1f}" y="{y + 13}">{row["real_time_factor"]:.3f}</text>')
    title = escape(f"Real-time factor (seconds per second of music): {record['machine']}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="8" y="16">{title}</text>{"".join(parts)}</svg>\n'
    )
