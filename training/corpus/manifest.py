"""What a build says of its arrays: manifest.json for programs, card.md for people (see README.md here)."""

import json
from pathlib import Path
from typing import Any

from tfswa_sep.audio.atomic_file import atomic_write
from training.corpus.recorded.sources import SAMPLE_RATE

FORMAT = 1
CARD_COLUMNS = (
    "pool", "source", "minutes", "speakers", "bandwidth_hz", "licence", "licence_class", "version",
)  # fmt: skip


def write_manifest(out: Path, rows: list[dict[str, Any]], seed: int) -> None:
    """Replace manifest.json in one step; rows keep the order of the catalogue.

    Sources that gave nothing usable are listed apart.
    """
    content: dict[str, Any] = {"format": FORMAT, "sample_rate": SAMPLE_RATE, "seed": seed}
    content |= {"sources": [r for r in rows if r["array"]], "empty": [r for r in rows if not r["array"]]}
    with atomic_write(out / "manifest.json") as temporary:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        temporary.write_text(text, encoding="utf-8")
    with atomic_write(out / "card.md") as temporary:
        temporary.write_text(card(rows), encoding="utf-8")


def card(rows: list[dict[str, Any]]) -> str:
    """The data card as a Markdown table: what was rendered or read, under which terms, how many minutes."""
    lines = [
        "| pool | source | minutes | speakers | bandwidth (Hz) | licence | class | version |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row.get(column, "")).replace("|", "/") for column in CARD_COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_manifest(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run by their fingerprint, as far as their arrays are still there."""
    path = out / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"sources": []}
    return {r["fingerprint"]: r for r in content["sources"] if (out / r["array"]).is_file()}
