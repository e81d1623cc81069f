"""An evaluation for people, as rich tables. Nothing is printed here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from tfswa_sep.constants import ACCOMPANIMENT
from tfswa_sep.evaluation.bsseval import FAST_SECONDS
from tfswa_sep.evaluation.compare import MEAN, Difference, bootstrap, mean_of_stems
from tfswa_sep.evaluation.listening.answers import ListeningTest
from tfswa_sep.evaluation.results import BASELINE, LABELS, Evaluation, MethodScores, StemScore

DETAILS = {"frame_sdr", "mixture_sdr", "gain", "kept", "leaked"}  # only in the table of one method
PLACES = {"kept": 2, "leaked": 3}  # decimals; two for all that is in dB

FAST_NOTE = (
    f"fast fits its filters anew every {FAST_SECONDS} s: its SIR and SAR differ from those of museval and mir_eval "
    "by up to 0.7 dB; publish v4, which is museval's"
)


def cell(score: StemScore | None, metric: str) -> str:
    """A number as it is printed, "-" where there is none."""
    value = None if score is None else score[metric]
    if value is None:
        return "-"
    return f"{value:{'+' if metric == 'gain' else ''}.{PLACES.get(metric, 2)}f}"


def song_table(method: MethodScores, data: str) -> Table:
    """One line a song and stem, then the averages, then what has to be said."""
    metrics = method.metrics
    table = Table(title=f"{method.name} on {data}, dB")
    for name in ("song", "stem", *(LABELS[metric] for metric in metrics)):
        table.add_column(name, justify="left" if name in ("song", "stem") else "right")
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
    table.caption = "\n".join([*notes(method), *([FAST_NOTE] if "fast_sir" in metrics else [])])
    return table


def summary_table(evaluation: Evaluation) -> Table:
    """One line a stem and method: medians over the songs, as the MUSDB18 protocol has them."""
    known = {name for method in evaluation.methods for name in method.metrics}
    metrics = [name for name in LABELS if name in known and name not in DETAILS]
    table = Table(title=f"{evaluation.data}, medians over the songs, dB")
    for name in ("stem", "method", "songs", *(LABELS[metric] for metric in metrics)):
        table.add_column(name, justify="left" if name in ("stem", "method") else "right")
    stems = dict.fromkeys(stem for method in evaluation.methods for stem in method.stems)
    for stem in stems:
        for method in evaluation.methods:
            score, count = method.median(stem)
            if score is not None:
                table.add_row(stem, method.name, str(count), *(cell(score, metric) for metric in metrics))
        table.add_section()
    if lines := differences(evaluation):
        table.caption = "\n".join(lines)
    return table


def score_table(evaluation: Evaluation) -> Table:
    """One line per stem and method, and the mean of the stems: mean SDR and how sure it is, median of frames."""
    table = Table(title=f"{evaluation.data}, SDR in dB")
    for name in ("stem", "method", "songs", "mean", "95 % interval", "median of frames"):
        table.add_column(name, justify="left" if name in ("stem", "method") else "right")
    stems = list(dict.fromkeys(stem for method in evaluation.methods for stem in method.stems))
    for stem in stems:
        for method in evaluation.methods:
            if stem in method.stems:
                _add_score(table, stem, method, [stem])
        table.add_section()
    for method in evaluation.methods:
        several = [stem for stem in method.stems if stem != ACCOMPANIMENT]
        if len(several) > 1:
            _add_score(table, MEAN, method, several)
    table.caption = (
        "Bootstrap over songs. Median of frames: over the songs, of each song's median over frames of 1 s."
    )
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
    """How far the quick numbers are from museval's in this very run, if it has both."""
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
    """One method against another, one line a stem."""
    one = differences[0]
    table = Table(title=f"{one.second} against {one.first}: {LABELS[one.metric]}, dB")
    columns = ("stem", "songs", "first", "second", "difference", "95 % interval", "better in", "verdict")
    for name in columns:
        table.add_column(name, justify="left" if name in ("stem", "verdict") else "right")
    for each in differences:
        known = each.low is not None and each.high is not None
        table.add_row(
            each.stem,
            str(each.songs),
            f"{each.mean_first:.2f}",
            f"{each.mean_second:.2f}",
            f"{each.difference:+.2f}",
            f"{each.low:+.2f} to {each.high:+.2f}" if known else "-",
            f"{each.second_better_in} of {each.songs}",
            each.verdict,
            style="bold" if each.stem == MEAN else None,
        )
    table.caption = "Means over the songs that both have scored; paired bootstrap over songs."
    if any(each.stem == MEAN for each in differences) and len(differences) > 3:
        table.caption += f" {MEAN}: of the stems, accompaniment apart."
    return table


def preference_table(found: ListeningTest) -> Table:
    """What listeners prefer, one line per stem and method."""
    table = Table(title=f"Listening test, {found.files} {'file' if found.files == 1 else 'files'} of answers")
    for name in (
        "stem",
        "method",
        "answers",
        "better",
        "no difference",
        "preference",
        "95 % interval",
        "p",
        "verdict",
    ):
        table.add_column(name, justify="left" if name in ("stem", "method", "verdict") else "right")
    for each in found.preferences:
        table.add_row(
            each.stem,
            each.method,
            str(each.answers),
            str(each.better),
            str(each.ties),
            f"{each.share:.0%}",
            f"{each.low:.0%} to {each.high:.0%}",
            f"{each.p_value:.3f}",
            each.verdict,
        )
    table.caption = (
        "Preference: no difference counts half for each; Wilson's interval. p: sign test, ties left out."
    )
    if found.unanswered:
        table.caption += f" Unanswered: {found.unanswered}."
    return table


def notes(method: MethodScores) -> list[str]:
    """What has to be said about the songs: what was odd, what was left out and how often."""
    lines = [f"{song.song}: {note}" for song in method.songs for note in song.warnings]
    lines += [f"{song.song}, {stem}: {why}" for song in method.songs for stem, why in song.skipped.items()]
    counts: dict[str, int] = {}
    for song in method.songs:
        for stem in song.skipped:
            counts[stem] = counts.get(stem, 0) + 1
    if counts:
        told = ", ".join(f"{stem} {count}" for stem, count in counts.items())
        lines.append(f"stems without a number, or not all of them: {told} (of {len(method.songs)} songs)")
    if any(song.apart for song in method.songs):
        lines.append("songs in parentheses are not in the averages")
    return lines
