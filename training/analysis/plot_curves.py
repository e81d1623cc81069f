"""Plot the validation curves of `small`: `python -m training.analysis.plot_curves`.

Reads experiments/curves/small.csv and writes small.svg next to it; a test checks that they match.
"""

from __future__ import annotations

import csv
from html import escape
from pathlib import Path

CURVES = Path(__file__).resolve().parents[2] / "experiments" / "curves"
WIDTH, HEIGHT = 960, 400  # px
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 40  # margins in px
COLOURS = ("#1f77b4", "#d95f02")  # alternating


def plot_curves(path: Path) -> str:
    """Plot the SDR gain over the mixture by step, with one line per run.

    Args:
        path: A CSV file with the columns experiment, leg (name of the run), step and sdr_gain_db.

    Returns:
        The SVG document.
    """
    runs: dict[str, list[tuple[int, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = f"{row['experiment']} {row['leg']}"
            runs.setdefault(name, []).append((int(row["step"]), float(row["sdr_gain_db"])))
    points = [point for run in runs.values() for point in run]
    last = max(step for step, _ in points)
    low, high = (pick(value for _, value in points) for pick in (min, max))
    low, high = int(low * 2) / 2 - 0.5, int(high * 2 + 1) / 2  # leaves half a dB for the names

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = []
    for half in range(round((high - low) * 2) + 1):
        value = low + half / 2
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for step in range(0, last + 1, 5_000):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{step:,}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">'
        "training steps; dB above the mixture on excerpts of 15 s, mean of four stems and five songs</text>"
    )
    for number, (name, run) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in run)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2" fill="{colour}"/>' for s, v in run]
        # The name starts below the lowest point, where there is no other curve.
        left, top = x(sum(step for step, _ in run) / len(run)), y(min(value for _, value in run)) + 12
        parts.append(
            f'<text transform="translate({left:.1f} {top:.1f}) rotate(60)" fill="{colour}">'
            f"{escape(name)}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#333">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    """Write the plot."""
    (CURVES / "small.svg").write_text(plot_curves(CURVES / "small.csv"), encoding="utf-8")


if __name__ == "__main__":
    main()
