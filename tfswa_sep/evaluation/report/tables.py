"""An evaluation for people, as rich tables. Nothing is printed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table

from tfswa_sep.constants import ACCOMPANIMENT
from tfswa_sep.evaluation.bsseval import FAST_SECONDS
from tfswa_sep.evaluation.compare import MEAN, MIN_SONGS, UNCLEAR, Difference, bootstrap, mean_of_stems
from tfswa_sep.evaluation.listening.answers import MIN_ANSWERS, ListeningTest
from tfswa_sep.evaluation.results import BASELINE, EXCERPTS, LABELS, Evaluation, MethodScores, StemScore

DETAILS = {"frame_sdr", "mixture_sdr", "gain", "kept", "leaked"}  # only in the table of one method
KINDS = (
    ("museval_",),
    ("fast_",),
    ("log_wmse", "si_sar", "bleedless", "fullness"),
    ("peass_",),
)  # of metrics, by their first letters
NAMES = 30  # characters for the names of songs, methods and stems
DECIMALS = {"leaked": 3}  # else 2

EXCERPTS_NOTE = "Excerpts, not whole songs: these are not scores by the official MUSDB18 protocol."
FAST_NOTE = (
    f"fast refits its filters every {FAST_SECONDS} s, so its SIR and SAR differ from those of museval and mir_eval "
    "by up to 0.7 dB; for publication, use v4, which is museval's"
)
KEPT_NOTE = (
    "kept: how much of the true stem is in the estimate (ideally 1); leaked: of the other stems (ideally 0)"
)


def cell(score: StemScore | None, metric: str) -> str:
    """A number as it is printed, "-" where there is none."""
    value = None if score is None else score[metric]
    if value is None:
        return "-"
    return f"{value:{'+' if metric == 'gain' else ''}.{DECIMALS.get(metric, 2)}f}"


def _table(title: str, texts: Sequence[str], numbers: Sequence[str], *, verdict: bool = False) -> Table:
    """An empty table with columns of text, of numbers and perhaps a verdict."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption_justify="left"
    )
    for name in texts:
        table.add_column(name, overflow="fold", no_wrap=name == "stem")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    if verdict:
        table.add_column("verdict")
    return table


def song_tables(method: MethodScores, data: str, *, width: int | None = None) -> list[Table]:
    """One row per song and stem, then the averages; the last caption says what else to know.

    Args:
        method: Whose scores.
        data: Name of the data set.
        width: Characters per line: metrics that do not fit go into another table. None: into one.
    """
    tables = []
    for metrics in _groups(method.metrics, width):
        table = _table(
            f"{method.name} on {data}, dB", ("song", "stem"), [LABELS[metric] for metric in metrics]
        )
        for song in method.songs:
            name = f"({song.song})" if song.apart else song.song
            for stem in dict.fromkeys((*song.stems, *song.skipped)):
                table.add_row(name, stem, *(cell(song.stems.get(stem), metric) for metric in metrics))
                name = ""
            table.add_section()
        for label, average in (("mean", method.mean), ("median", method.median)):
            for stem in method.stems:
                score, count = average(stem)
                if score is not None:
                    cells = (cell(score, metric) for metric in metrics)
                    table.add_row(f"{label} of {count}", stem, *cells, style="bold")
            table.add_section()
        tables.append(table)
    explained = [KEPT_NOTE] if "kept" in method.metrics else []
    quick = [FAST_NOTE] if "fast_sir" in method.metrics else []
    tables[-1].caption = "\n".join([*notes(method), *explained, *quick])
    return tables


def summary_tables(evaluation: Evaluation, *, width: int | None = None) -> list[Table]:
    """One row per stem and method: medians over the songs, as in the MUSDB18 protocol; `width` as in song_tables."""
    known = {name for method in evaluation.methods for name in method.metrics}
    title = f"{evaluation.data}, medians over the songs, dB"
    tables = []
    for metrics in _groups([name for name in LABELS if name in known and name not in DETAILS], width):
        table = _table(title, ("stem", "method"), ["songs", *(LABELS[metric] for metric in metrics)])
        for stem in evaluation.stems:
            for method in evaluation.methods:
                score, count = method.median(stem)
                if score is not None:
                    table.add_row(stem, method.name, str(count), *(cell(score, metric) for metric in metrics))
            table.add_section()
        tables.append(table)
    if lines := differences(evaluation):
        tables[-1].caption = "\n".join(lines)
    return tables


def _groups(metrics: Sequence[str], width: int | None) -> list[list[str]]:
    """The metrics of each table: those of one kind stay together."""
    if width is None:
        return [list(metrics)]
    groups: list[list[str]] = [[]]
    kinds = {name: next((kind for kind in KINDS if name.startswith(kind)), ()) for name in metrics}
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name in metrics if kinds[name] == kind]
        if groups[-1] and sum(max(len(LABELS[name]), 5) + 1 for name in groups[-1] + names) > width - NAMES:
            groups.append([])
        groups[-1] += names
    return groups


def score_table(evaluation: Evaluation) -> Table:
    """One row per stem and method, and for the mean of the stems: mean SDR with its interval, median of frames."""
    columns = ("songs", "mean", "95 % interval", "median of frames")
    table = _table(f"{evaluation.data}, SDR in dB", ("stem", "method"), columns)
    for stem in evaluation.stems:
        for method in evaluation.methods:
            if stem in method.stems:
                _add_score(table, stem, method, [stem])
        table.add_section()
    for method in evaluation.methods:
        several = [stem for stem in method.stems if stem != ACCOMPANIMENT]
        if len(several) > 1:
            _add_score(table, MEAN, method, several)
    lines = [
        "Bootstrap over songs. Median of frames: over the songs, of each song's median over frames of 1 s."
    ]
    if evaluation.data.startswith(EXCERPTS):
        lines.append(EXCERPTS_NOTE)
    table.caption = "\n".join(lines)
    return table


def _add_score(table: Table, label: str, method: MethodScores, stems: Sequence[str]) -> None:
    values = method.matrix(stems, "sdr", [song.song for song in method.songs])
    values = values[~np.isnan(values).all(axis=1)]
    if not len(values):
        return
    low, high = bootstrap(values)
    medians = [score["frame_sdr"] for stem in stems if (score := method.median(stem)[0]) is not None]
    known = [median for median in medians if median is not None]
    table.add_row(
        label,
        method.name,
        str(len(values)),
        f"{mean_of_stems(values):.2f}",
        f"{low:.2f} to {high:.2f}" if len(values) > 1 else "-",
        f"{np.mean(known):.2f}" if len(known) == len(stems) else "-",
        style="bold" if label == MEAN else None,
    )


def differences(evaluation: Evaluation) -> list[str]:
    """The differences between the fast metrics and museval's in this run, if it has both."""
    lines = []
    for method in evaluation.methods:
        if method.kind == BASELINE:
            continue
        for metric in ("sdr", "sir", "sar"):
            gaps = []
            for stem in method.stems:
                quick, official = (method.values(stem, f"{kind}_{metric}") for kind in ("fast", "museval"))
                gaps += [quick[song] - official[song] for song in quick.keys() & official.keys()]
            if gaps:
                mean, low, high = (
                    round(gap, 2) + 0.0 for gap in (sum(gaps) / len(gaps), min(gaps), max(gaps))
                )  # adding zero takes the sign off -0.0
                lines.append(
                    f"{method.name}: {metric.upper()} fast - v4 is {mean:+.2f} dB on average, "
                    f"from {low:+.2f} to {high:+.2f}"
                )
    if any("fast_sir" in method.metrics for method in evaluation.methods):
        lines.append(FAST_NOTE)
    return lines


def difference_table(differences: Sequence[Difference]) -> Table:
    """One method against another, one row per stem. Narrower than 80 columns."""
    one = differences[0]
    columns = ("songs", "first", "second", "difference", "95 % interval", "wins")
    title = f"{one.second} against {one.first}: {LABELS[one.metric]}, dB"
    table = _table(title, ("stem",), columns, verdict=True)
    for each in differences:
        known = each.low is not None and each.high is not None
        table.add_row(
            each.stem,
            str(each.songs),
            f"{each.mean_first:.2f}",
            f"{each.mean_second:.2f}",
            f"{each.difference:+.2f}",
            f"{each.low:+.2f} to {each.high:+.2f}" if known else "-",
            str(each.second_better_in),
            each.short_verdict,
            style="bold" if each.stem == MEAN else None,
        )
    lines = [
        f"First: {one.first}. Second: {one.second}. The verdict is on the second.",
        "Means over the songs in both records; paired bootstrap over songs.",
        "Wins: songs in which the second is better.",
    ]
    if any(each.short_verdict == UNCLEAR for each in differences):
        lines.append("Unclear: the interval includes zero.")
    if any(each.songs < MIN_SONGS for each in differences):
        lines.append(f"No verdict on fewer than {MIN_SONGS} songs.")
    if {MEAN, ACCOMPANIMENT} <= {each.stem for each in differences}:
        lines.append("Mean: over the stems, without the accompaniment.")
    table.caption = "\n".join(lines)
    return table


def preference_table(test: ListeningTest) -> Table:
    """What listeners prefer, one row per stem and method."""
    title = f"Listening test, {test.files} {'file' if test.files == 1 else 'files'} of answers"
    columns = ("answers", "better", "no difference", "preference", "95 % interval", "p")
    table = _table(title, ("stem", "method"), columns, verdict=True)
    for each in test.preferences:
        table.add_row(
            each.stem,
            each.method,
            str(each.answers),
            str(each.better),
            str(each.ties),
            f"{each.share:.0%}",
            f"{each.low:.0%} to {each.high:.0%}",
            f"{each.p_value:.3f}",
            each.verdict if each.answers >= MIN_ANSWERS else "-",
        )
    lines = [
        "Preference: no difference counts half for each; Wilson's interval.",
        "p: sign test, ties left out.",
    ]
    if any(each.answers < MIN_ANSWERS for each in test.preferences):
        lines.append(f"No verdict on fewer than {MIN_ANSWERS} answers.")
    if test.unanswered:
        lines.append(f"Unanswered: {test.unanswered}.")
    table.caption = "\n".join(lines)
    return table


def notes(method: MethodScores) -> list[str]:
    """Notes on the songs: warnings, and which stems were not scored and how often."""
    lines = [f"{song.song}: {note}" for song in method.songs for note in song.warnings]
    left_out = [(song.song, stem, why) for song in method.songs for stem, why in song.skipped.items()]
    left_out += [
        (song.song, stem, "no estimate")
        for song in method.songs
        if not song.is_missing
        for stem in method.stems
        if stem not in {*song.stems, *song.skipped}
    ]
    lines += [f"{song}, {stem}: {why}" for song, stem, why in left_out]
    counts = Counter(stem for _, stem, _ in left_out)
    if counts:
        listed = ", ".join(f"{stem} {count}" for stem, count in counts.items())
        lines.append(f"songs without a score, per stem: {listed} (of {len(method.songs)} songs)")
    if missing := [song.song for song in method.songs if song.is_missing]:
        lines.append(f"missing songs: {len(missing)} (of {len(method.songs)}): {', '.join(missing)}")
    if any(song.apart for song in method.songs):
        lines.append("songs in parentheses are not in the averages")
    return lines
