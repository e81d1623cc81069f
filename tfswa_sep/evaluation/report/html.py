"""An evaluation as one HTML file: tables, charts, provenance. It needs neither a network nor a script."""

from __future__ import annotations

from statistics import fmean

from tfswa_sep.evaluation.extra import render
from tfswa_sep.evaluation.report.charts import Scatter, bar_charts, box_plot, scatter
from tfswa_sep.evaluation.report.tables import KEPT_NOTE, cell, differences, notes
from tfswa_sep.evaluation.results import BASELINE, LABELS, Evaluation

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777")


def html_report(evaluation: Evaluation) -> str:
    """The whole page.

    Raises:
        UsageError: jinja2 is not installed.
    """
    methods = evaluation.methods
    names = [method.name for method in methods]
    stems = evaluation.stems
    songs = {song.song: song.seconds for method in methods for song in method.songs}
    metric = main_metric(evaluation)
    values = {
        stem: {method.name: list(method.values(stem, metric).values()) for method in methods}
        for stem in stems
    }
    scores = {
        stem: {
            song: {
                method.name: value
                for method in methods
                for score in method.songs
                if score.song == song
                and stem in score.stems
                and (value := score.stems[stem][metric]) is not None
            }
            for song in songs
        }
        for stem in stems
    }
    return render(
        "report.html.j2",
        "--report",
        evaluation=evaluation,
        real_methods=[method for method in methods if method.kind != BASELINE],
        names=names,
        stems=stems,
        songs=songs,
        metric=LABELS[metric],
        labels=LABELS,
        metrics=[name for name in LABELS if any(name in method.metrics for method in methods)],
        colours=[COLOURS[number % len(COLOURS)] for number in range(len(names))],
        boxes=box_plot(values, names),
        speed=_speed(evaluation, metric),
        bars=bar_charts(scores, names),
        differences=differences(evaluation),
        kept_note=KEPT_NOTE,
        notes=notes,
        cell=cell,
    )


def main_metric(evaluation: Evaluation) -> str:
    """What the charts show: museval's SDR where every method has it, else the global SDR."""
    official = all("museval_sdr" in method.metrics for method in evaluation.methods)
    return "museval_sdr" if official and evaluation.methods else "sdr"


def _speed(evaluation: Evaluation, metric: str) -> Scatter | None:
    """Real-time factor against the mean over the stems of their medians."""
    points = {}
    for method in evaluation.methods:
        medians = [
            score[metric] for stem in evaluation.stems if (score := method.median(stem)[0]) is not None
        ]
        known = [median for median in medians if median is not None]
        if method.real_time_factor and known:
            points[method.name] = (method.real_time_factor, fmean(known))
    return scatter(points, [method.name for method in evaluation.methods])
