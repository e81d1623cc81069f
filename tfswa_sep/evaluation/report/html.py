"""An evaluation as one HTML file: tables, plots, provenance. It needs no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tfswa_sep.evaluation.report.charts import bars, box_plot, scatter
from tfswa_sep.evaluation.report.tables import cell, differences, notes
from tfswa_sep.evaluation.results import BASELINE, LABELS, Evaluation, MethodScores

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777")
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; margin: 2rem auto; max-width: 1160px;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p.lead { color: #6b7280; margin: .2rem 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .82rem; width: 100%; }
th, td { padding: .22rem .4rem; text-align: right; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
th { color: #6b7280; font-weight: 600; } th.text, td.text { text-align: left; }
tr.first td { border-top: 2px solid #d1d5db; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: #4b5563; } .tick { text-anchor: end; } .label { text-anchor: middle; }
.song { text-anchor: end; } .grid { stroke: #eef0f3; } .zero { stroke: #9ca3af; }
.box { fill-opacity: .25; stroke-width: 1.5; } .median { stroke-width: 3; }
ul.key { list-style: none; padding: 0; margin: .2rem 0; }
ul.key li { display: inline-block; margin-right: 1.2rem; }
ul.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
dl { display: grid; grid-template-columns: 9rem 1fr; gap: .2rem 1rem; font-size: .88rem; }
dt { color: #6b7280; } dd { margin: 0; overflow-wrap: anywhere; }
ul.notes { font-size: .88rem; color: #4b5563; padding-left: 1.2rem; }
"""


def html_report(evaluation: Evaluation) -> str:
    """The whole page."""
    names = [method.name for method in evaluation.methods]
    stems = list(dict.fromkeys(stem for method in evaluation.methods for stem in method.stems))
    metric = main_metric(evaluation)
    label = LABELS[metric]
    songs = {song.song: song.seconds for method in evaluation.methods for song in method.songs}
    minutes = sum(songs.values()) / 60
    boxes = {
        stem: {method.name: list(method.values(stem, metric).values()) for method in evaluation.methods}
        for stem in stems
    }
    sections = [
        f"<h1>{escape(' · '.join(_told(evaluation.methods)))}</h1>",
        f'<p class="lead">{escape(evaluation.data)}: {len(songs)} songs, {minutes:.1f} minutes. '
        f"{escape(evaluation.date[:10])}. All ratios in dB, higher is better.</p>",
        _key(names),
        f"<h2>{label} by stem</h2><p class='lead'>Box: the middle half of the songs, with their median. "
        f"Line: from the worst to the best.</p><div class='scroll'>{box_plot(boxes, names)}</div>",
        "<h2>Medians over the songs</h2>",
        _summary(evaluation, stems),
        _list(differences(evaluation)),
        _speed(evaluation, stems, metric, names),
        f"<h2>{label} by song</h2>",
    ]
    for stem in stems:
        groups = {
            song: {
                method.name: [value]
                for method in evaluation.methods
                if (value := _value(method, song, stem, metric)) is not None
            }
            for song in songs
        }
        sections.append(f"<h3>{escape(stem)}</h3><div class='scroll'>{bars(groups, names)}</div>")
    for method in evaluation.methods:
        if method.kind != BASELINE:
            sections += [
                f"<h2>{escape(method.name)}, song by song</h2>",
                _songs(method),
                _list(notes(method)),
            ]
    sections += ["<h2>Where these numbers come from</h2>", _provenance(evaluation)]
    colours = "".join(
        f".s{number} .box, .s{number} circle, .bar.s{number} {{ fill: {colour}; }} "
        f".s{number} .box, .s{number} line {{ stroke: {colour}; }}"
        f" .key .s{number} {{ background: {colour}; }}\n"
        for number, colour in ((index, COLOURS[index % len(COLOURS)]) for index in range(len(names)))
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>{escape(', '.join(names))} on {escape(evaluation.data)}</title>"
        f"<style>{STYLE}{colours}</style></head>\n<body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def main_metric(evaluation: Evaluation) -> str:
    """What the plots show: museval's SDR where every method has it, else the global SDR."""
    official = all("museval_sdr" in method.metrics for method in evaluation.methods)
    return "museval_sdr" if official and evaluation.methods else "sdr"


def _told(methods: Sequence[MethodScores]) -> list[str]:
    return [method.name for method in methods if method.kind != BASELINE] or ["Baselines"]


def _key(names: Sequence[str]) -> str:
    items = (f'<li><i class="s{number}"></i>{escape(name)}</li>' for number, name in enumerate(names))
    return f'<ul class="key">{"".join(items)}</ul>'


def _value(method: MethodScores, song: str, stem: str, metric: str) -> float | None:
    found = [
        score.stems[stem][metric] for score in method.songs if score.song == song and stem in score.stems
    ]
    return found[0] if found else None


def _speed(evaluation: Evaluation, stems: Sequence[str], metric: str, names: Sequence[str]) -> str:
    points = {}
    for method in evaluation.methods:
        medians = [score[metric] for stem in stems if (score := method.median(stem)[0]) is not None]
        known = [value for value in medians if value is not None]
        if method.real_time_factor and known:
            points[method.name] = (method.real_time_factor, sum(known) / len(known))
    if not points:
        return ""
    plot = scatter(points, names, "s of work / s of music")
    return (
        f"<h2>{LABELS[metric]} against speed</h2><p class='lead'>Up: better, the mean over the stems. "
        f"Left: faster; one second of work for one second of music is 1.</p><div class='scroll'>{plot}</div>"
    )


def _summary(evaluation: Evaluation, stems: Sequence[str]) -> str:
    metrics = [name for name in LABELS if any(name in method.metrics for method in evaluation.methods)]
    rows = []
    for stem in stems:
        shown = stem
        for method in evaluation.methods:
            score, count = method.median(stem)
            if score is not None:
                cells = [shown, method.name, str(count), *(cell(score, metric) for metric in metrics)]
                rows.append(_row(cells, first=bool(shown)))
                shown = ""
    return _table(["stem", "method", "songs", *(LABELS[metric] for metric in metrics)], rows)


def _songs(method: MethodScores) -> str:
    rows = []
    for song in method.songs:
        shown = f"({song.song})" if song.apart else song.song
        for stem, score in song.stems.items():
            rows.append(_row([shown, stem, *(cell(score, metric) for metric in method.metrics)], bool(shown)))
            shown = ""
    return _table(["song", "stem", *(LABELS[metric] for metric in method.metrics)], rows)


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(
        f"<th{' class=text' if place < 2 else ''}>{escape(name)}</th>" for place, name in enumerate(head)
    )
    return f'<div class="scroll"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def _row(cells: Sequence[str], first: bool) -> str:
    told = "".join(
        f"<td{' class=text' if place < 2 else ''}>{escape(text)}</td>" for place, text in enumerate(cells)
    )
    return f"<tr{' class=first' if first else ''}>{told}</tr>"


def _list(lines: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


def _provenance(evaluation: Evaluation) -> str:
    facts = {
        "command": evaluation.command,
        "date": evaluation.date,
        "machine": evaluation.machine,
        "versions": ", ".join(f"{name} {version}" for name, version in evaluation.versions.items()),
    }
    for method in evaluation.methods:
        if method.sha256 or method.backend:
            factor = method.real_time_factor
            speed = "" if factor is None else f", real-time factor {factor:.3f}"
            threads = method.threads or "auto"
            computed = f"{method.backend} {method.precision or ''}".strip()
            facts[method.name] = (
                f"{computed} on {method.device}, threads {threads}{speed}; SHA-256 {method.sha256 or '-'}"
            )
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<dl>{terms}</dl>"
