"""The layout of the report's charts; templates/charts.html.j2 draws them as inline SVG.

x is in percent of the chart's width, so that a chart fits any screen and its text keeps its size; y is in px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TOP, BASE = 12.0, 272.0  # px: the ends of a vertical axis
WIDEST_BOX = 4.0  # % of the chart
LINE = 15.0  # px between labels
NEAR = 30.0  # % of the chart: labels of points that are closer may overlap


class Scale:
    """A linear axis with round ticks around `values`, from `start` to `end`."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, zero: bool = False) -> None:
        low, high = min(values), max(values)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        if high - low < 1:  # leave room around a single value
            low, high = low - 0.5, high + 0.5
        span = high - low
        power = 10.0 ** math.floor(math.log10(span / 5))
        step = next(size * power for size in (1, 2, 5, 10) if span / (size * power) <= 6)
        first, last = math.floor(low / step), math.ceil(high / step + 1e-9)
        self._low, self._high = first * step, last * step
        self._start, self._end = start, end
        self.ticks = [(f"{number * step:g}", self.place(number * step)) for number in range(first, last + 1)]

    def place(self, value: float) -> float:
        """Where `value` lies between `start` and `end`."""
        share = (value - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 2)


@dataclass(frozen=True)
class Box:
    """The songs of one method and stem: all y in px, from `low` (the worst song) to `high`."""

    series: int  # number of the method, which decides the colour
    title: str
    x: float  # %
    half: float  # of its width, %
    low: float
    q1: float
    median: float
    q3: float
    high: float
    dots: tuple[float, ...]


@dataclass(frozen=True)
class BoxPlot:
    """One group of boxes per stem."""

    ticks: list[tuple[str, float]]  # y
    groups: list[tuple[str, float]]  # name and x
    boxes: list[Box]


@dataclass(frozen=True)
class Bar:
    """One method's value for one song."""

    series: int
    title: str
    x: float  # %
    width: float  # %


@dataclass(frozen=True)
class BarChart:
    """One row of bars per song."""

    ticks: list[tuple[str, float]]  # x
    rows: dict[str, list[Bar]]


@dataclass(frozen=True)
class Point:
    """A named point of a scatter plot."""

    series: int | None  # number of the method, which decides the colour; None: not measured here
    name: str
    x: float  # %
    y: float  # px
    label_y: float  # px


@dataclass(frozen=True)
class Scatter:
    """Named points over a logarithmic x axis."""

    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]
    points: list[Point]


def box_plot(groups: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str]) -> BoxPlot | None:
    """Quartiles and range of {stem: {method: values}}, methods in the order of `names`; None without values."""
    values = [value for series in groups.values() for each in series.values() for value in each]
    if not values:
        return None
    scale = Scale(values, BASE, TOP)
    room = 100 / len(groups)
    slot = min(0.9 * room / len(names), WIDEST_BOX / 0.64)
    boxes = []
    for index, (group, series) in enumerate(groups.items()):
        for number, name in enumerate(names):
            if not (scores := series.get(name)):
                continue
            x = (index + 0.5) * room + (number - (len(names) - 1) / 2) * slot
            title = f"{name}, {group}: median {np.median(scores):.2f} of {len(scores)}"
            low, q1, median, q3, high = (scale.place(q) for q in np.percentile(scores, (0, 25, 50, 75, 100)))
            dots = tuple(scale.place(score) for score in scores)
            boxes.append(
                Box(number, title, round(x, 2), round(slot * 0.32, 2), low, q1, median, q3, high, dots)
            )
    return BoxPlot(scale.ticks, [(group, (i + 0.5) * room) for i, group in enumerate(groups)], boxes)


def bar_charts(
    groups: Mapping[str, Mapping[str, Mapping[str, float]]], names: Sequence[str]
) -> dict[str, BarChart]:
    """Bars from zero for {stem: {song: {method: value}}}, all charts on the same axis; none without values."""
    values = [value for rows in groups.values() for row in rows.values() for value in row.values()]
    if not values:
        return {}
    scale = Scale(values, 0, 100, zero=True)

    def bar(song: str, name: str, value: float) -> Bar:
        left, right = sorted((scale.place(value), scale.place(0)))
        return Bar(names.index(name), f"{song}, {name}: {value:.2f}", left, round(right - left, 2))

    return {
        stem: BarChart(
            scale.ticks,
            {song: [bar(song, name, value) for name, value in row.items()] for song, row in rows.items()},
        )
        for stem, rows in groups.items()
    }


def scatter(
    points: Mapping[str, tuple[float, float]],
    names: Sequence[str],
    published: Mapping[str, tuple[float, float]],
) -> Scatter | None:
    """Points (x, y) by name, and others that were published; None without points."""
    if not points:
        return None
    everything = [*points.items(), *published.items()]
    scale = Scale([y for _, (_, y) in everything], BASE, TOP)
    logs = [math.log10(x) for _, (x, _) in everything]
    low, high = math.floor(min(logs) - 0.1), math.ceil(max(logs) + 0.1)

    def place(x: float) -> float:
        return round(3 + 94 * (math.log10(x) - low) / (high - low), 2)

    placed: list[Point] = []
    for number, (name, (x, y)) in enumerate(everything):
        label = scale.place(y)
        while any(abs(each.x - place(x)) < NEAR and abs(each.label_y - label) < LINE for each in placed):
            label += 1
        series = names.index(name) if number < len(points) else None
        placed.append(Point(series, name, place(x), scale.place(y), label))
    digits = (1, 2, 5) if high - low < 4 else (1,)
    ticks = [digit * 10.0**power for power in range(low, high) for digit in digits] + [10.0**high]
    return Scatter([(f"{x:g}", place(x)) for x in ticks], scale.ticks, placed)
