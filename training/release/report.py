"""Write the numbers of a released model into README.md: `python -m training.release.report`.

They come from records that the release checklist in CONTRIBUTING.md makes with the installed wheel:

    experiments/small/scores.json       tfswa-sep eval --data ... --json
    experiments/small/scores_int8.json  the same with --precision int8
    experiments/small/benchmark.json    python -m training.benchmark --json

What stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is replaced, and nothing else. A test
compares README.md with the records, so that it cannot say what was not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "experiments" / "small"

Record = dict[str, Any]


def fill_in(readme: str, records: Path = RUN) -> str:
    """README.md's text with every block written anew; a block whose record is not there says so."""
    for name, (file, render) in BLOCKS.items():
        path = records / file
        body = render(json.loads(path.read_text("utf-8"))) if path.is_file() else "Not measured yet."
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if readme.count(begin) != 1 or readme.count(end) != 1:
            raise ValueError(f"README.md needs exactly one block {name!r}")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}{body}\n{end}{rest.partition(end)[2]}"
    return readme


def scores_table(record: Record) -> str:
    """One line a song, then the mean: the SDR of each stem, and in brackets how far above the mixture's."""
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
    return f"In 8 bits (`--precision int8`) the means are: {found} dB."


def speed_table(record: Record) -> str:
    """One line a setting or peer: the real-time factor and the highest memory of the whole command."""
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


BLOCKS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "scores": ("scores.json", scores_table),
    "scores in 8 bits": ("scores_int8.json", means),
    "speed": ("benchmark.json", speed_table),
}


def _cell(score: Record | None) -> str:
    return "-" if score is None else f"{score['sdr']:.2f} ({score['gain']:+.2f})"


def main() -> None:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    path.write_text(fill_in(path.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
