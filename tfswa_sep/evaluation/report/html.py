"""An evaluation as one HTML file: tables, charts, excerpts, provenance. It needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from tfswa_sep.constants import ACCOMPANIMENT
from tfswa_sep.evaluation.optional_packages import render
from tfswa_sep.evaluation.report.charts import Scatter, bar_charts, box_plot, scatter
from tfswa_sep.evaluation.report.excerpts import Example
from tfswa_sep.evaluation.report.paper import latex, main_metric, markdown, paper_tables
from tfswa_sep.evaluation.report.tables import EXCERPTS_NOTE, KEPT_NOTE, cell, differences, notes
from tfswa_sep.evaluation.results import BASELINE, EXCERPTS, LABELS, Evaluation
from tfswa_sep.evaluation.scoring import EXCERPT_SECONDS

# Real-time factor and mean of the four stems' median SDR v4 on MUSDB18-HQ's test songs. The SDR is their authors'.
# The times were measured with random weights (docs/benchmarks.md), HT Demucs with one of its four networks; SCNet's
# authors say that it takes 48 % of that one's time.
PUBLISHED = {
    "Open-Unmix": (0.328, 5.3),
    "HT Demucs, fine-tuned": (4 * 0.720, 9.0),
    "SCNet": (0.48 * 0.720, 9.0),
}
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777")


def html_report(evaluation: Evaluation, examples: Sequence[Example] = ()) -> str:
    """The whole page.

    Args:
        evaluation: The scores.
        examples: Best and worst excerpts.

    Raises:
        UsageError: jinja2 is not installed.
    """
    methods = evaluation.methods
    names = [method.name for method in methods]
    stems = evaluation.stems
    songs = {song.song: song.seconds for method in methods for song in method.songs}
    metric = main_metric(evaluation)
    tables = paper_tables(evaluation)
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
        examples=examples,
        excerpt_seconds=EXCERPT_SECONDS,
        tables={"Markdown": markdown(tables), "LaTeX": latex(tables)},
        caveat=EXCERPTS_NOTE if evaluation.data.startswith(EXCERPTS) else "",
        bars=bar_charts(scores, names),
        differences=differences(evaluation),
        kept_note=KEPT_NOTE,
        notes=notes,
        cell=cell,
    )


def _speed(evaluation: Evaluation, metric: str) -> Scatter | None:
    """Real-time factor against the mean over the stems of their medians, without the accompaniment beside others."""
    points = {}
    stems = [stem for stem in evaluation.stems if stem != ACCOMPANIMENT] or evaluation.stems
    for method in evaluation.methods:
        medians = [score[metric] for stem in stems if (score := method.median(stem)[0]) is not None]
        known = [median for median in medians if median is not None]
        if method.real_time_factor and known:
            points[method.name] = (method.real_time_factor, fmean(known))
    comparable = (
        metric == "museval_sdr" and evaluation.data.startswith("MUSDB18") and "test" in evaluation.data
    )
    return scatter(points, [method.name for method in evaluation.methods], PUBLISHED if comparable else {})
