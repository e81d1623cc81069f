"""Plots as inline SVG: box plot, bars, scatter. Text and numbers only, so that a page opens offline.

Colours come from the page's CSS: series i has the class `s{i}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

Series = Mapping[str, Mapping[str, Sequence[float]]]  # group (a stem) -> series (a method) -> values

WIDTH, HEIGHT = 900, 300  # px
LEFT, TOP, BOTTOM = 48, 12, 28  # px around the plot
SONG_NAMES = 290  # px to the left of bars


class _Axis:
    """A vertical scale with round ticks around some values."""

    def __init__(self, values: Sequence[float], *, height: int = HEIGHT, zero: bool = False) -> None:
        low, high = min(values), max(values)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if high - low < 1:  # a single value: some room around it
            low, high = low - 0.5, high + 0.5
        span = high - low
        power = 10.0 ** math.floor(math.log10(span / 5))
        self.step: float = next(size * power for size in (1, 2, 5, 10) if span / (size * power) <= 6)
        self.low = math.floor(low / self.step) * self.step
        self.high = math.ceil(high / self.step + 1e-9) * self.step
        self.height: int = height

    def y(self, value: float) -> float:
        """Where a value lies, in px from the top."""
        room = self.height - TOP - BOTTOM
        return TOP + room * (self.high - value) / (self.high - self.low)

    def draw(self, width: int) -> str:
        lines = []
        for number in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + number * self.step
            y = self.y(value)
            shade = "zero" if abs(value) < self.step / 1e3 else "grid"
            lines.append(f'<line class="{shade}" x1="{LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
        return "".join(lines)


def box_plot(groups: Series, names: Sequence[str]) -> str:
    """A box for every series in every group: quartiles, median, whiskers to the ends, a dot a value."""
    values = [value for group in groups.values() for found in group.values() for value in found]
    if not values:
        return ""
    axis, parts = _Axis(values), []
    room = (WIDTH - LEFT) / len(groups)
    for place, (group, series) in enumerate(groups.items()):
        start = LEFT + place * room
        parts.append(_label(start + room / 2, HEIGHT - 8, group))
        slot = min(room * 0.9 / max(len(names), 1), 60.0)
        for number, name in enumerate(names):
            found = series.get(name, ())
            if not len(found):
                continue
            x = start + room / 2 + (number - (len(names) - 1) / 2) * slot
            low, q1, median, q3, high = (
                axis.y(value) for value in np.percentile(found, (0, 25, 50, 75, 100))
            )
            half = slot * 0.32
            dots = "".join(f'<circle cx="{x:.1f}" cy="{axis.y(v):.1f}" r="2"/>' for v in found)
            parts.append(
                f'<g class="s{number}"><title>{escape(name)}, {escape(group)}: median '
                f"{np.median(found):.2f} of {len(found)}</title>"
                f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{high:.1f}" y2="{low:.1f}"/>'
                f'<rect class="box" x="{x - half:.1f}" y="{q3:.1f}" width="{2 * half:.1f}" '
                f'height="{max(q1 - q3, 1):.1f}"/>'
                f'<line class="median" x1="{x - half:.1f}" x2="{x + half:.1f}" y1="{median:.1f}" '
                f'y2="{median:.1f}"/>{dots}</g>'
            )
    return _svg(WIDTH, HEIGHT, axis.draw(WIDTH) + "".join(parts))


def bars(groups: Series, names: Sequence[str]) -> str:
    """Horizontal bars from zero, one row per group (here a song); the first value of each series counts."""
    values = [value for group in groups.values() for found in group.values() for value in found]
    if not values:
        return ""
    thick = 7 if len(names) > 2 else 10  # px per bar
    room = thick * len(names) + 8  # px per row
    height = TOP + room * len(groups) + BOTTOM
    axis, parts = _Axis(values, zero=True), []
    shift = (WIDTH - SONG_NAMES - 16) / (axis.high - axis.low)

    def x(value: float) -> float:
        return SONG_NAMES + shift * (value - axis.low)

    for number in range(round((axis.high - axis.low) / axis.step) + 1):
        value = axis.low + number * axis.step
        shade = "zero" if abs(value) < axis.step / 1e3 else "grid"
        parts.append(
            f'<line class="{shade}" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        )
        parts.append(_label(x(value), height - 10, f"{value:g}"))
    for place, (group, series) in enumerate(groups.items()):
        start = TOP + place * room + 4
        name = group if len(group) <= 42 else f"{group[:41]}…"
        parts.append(
            f'<text class="song" x="{SONG_NAMES - 8}" y="{start + (room - 8) / 2 + 4:.1f}">{escape(name)}'
            f"<title>{escape(group)}</title></text>"
        )
        for number, series_name in enumerate(names):
            for value in series.get(series_name, ())[:1]:
                left, right = sorted((x(value), x(0.0)))
                parts.append(
                    f'<rect class="bar s{number}" x="{left:.1f}" y="{start + number * thick:.1f}" '
                    f'width="{max(right - left, 0.5):.1f}" height="{thick - 1}"><title>{escape(group)}, '
                    f"{escape(series_name)}: {value:.2f}</title></rect>"
                )
    return _svg(WIDTH, height, "".join(parts))


def scatter(points: Mapping[str, tuple[float, float]], names: Sequence[str], x_label: str) -> str:
    """A named point (x, y) a series; x is logarithmic."""
    if not points:
        return ""
    axis = _Axis([y for _, y in points.values()])
    logs = [math.log10(x) for x, _ in points.values()]
    low, high = math.floor(min(logs) - 0.1), math.ceil(max(logs) + 0.1)
    parts = []

    def place(log: float) -> float:
        return LEFT + 20 + (WIDTH - LEFT - 160) * (log - low) / (high - low)

    for power in range(low, high + 1):
        for digit in (1, 2, 5) if power < high else (1,):
            x = place(power + math.log10(digit))
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(_label(x, HEIGHT - 12, f"{digit * 10**power:g}"))
    parts.append(f'<text class="tick" x="{WIDTH - 8}" y="{HEIGHT - 12}">{escape(x_label)}</text>')
    for name, (value, y) in points.items():
        x, at = place(math.log10(value)), axis.y(y)
        parts.append(
            f'<g class="s{names.index(name)}"><circle class="dot" cx="{x:.1f}" cy="{at:.1f}" r="6"/></g>'
            f'<text class="name" x="{x + 11:.1f}" y="{at + 4:.1f}">{escape(name)}</text>'
        )
    return _svg(WIDTH, HEIGHT, axis.draw(WIDTH) + "".join(parts))


def _label(x: float, y: float, text: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y}">{escape(text)}</text>'


def _svg(width: int, height: int, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="min-width:{width * 0.7:.0f}px" role="img">{body}</svg>'
    )
