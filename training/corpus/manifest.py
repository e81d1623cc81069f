"""Descriptions of the arrays: manifest.json for programs, card.md for people (see README.md)."""

import json
from pathlib import Path
from typing import Any

from tfswa_sep.audio.atomic_file import write_text
from tfswa_sep.constants import SAMPLE_RATE

FORMAT = 1
CARD_COLUMNS = (
    "pool", "source", "minutes", "speakers", "bandwidth_hz", "licence", "licence_class", "version",
)  # fmt: skip


def write_manifest(out: Path, rows: list[dict[str, Any]], seed: int) -> None:
    """Replace manifest.json and card.md atomically; sources without usable audio are listed separately."""
    content: dict[str, Any] = {"format": FORMAT, "sample_rate": SAMPLE_RATE, "seed": seed}
    content |= {"sources": [r for r in rows if r["array"]], "empty": [r for r in rows if not r["array"]]}
    write_text(out / "manifest.json", json.dumps(content, ensure_ascii=False, separators=(",", ":")))
    write_text(out / "card.md", _format_card(rows))


def _format_card(rows: list[dict[str, Any]]) -> str:
    """The data card: a Markdown table of sources, terms and minutes."""
    lines = [
        "| pool | source | minutes | speakers | bandwidth (Hz) | licence | class | version |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row.get(column, "")).replace("|", "/") for column in CARD_COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_manifest(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier build by fingerprint, if their arrays still exist."""
    path = out / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"sources": []}
    return {r["fingerprint"]: r for r in content["sources"] if (out / r["array"]).is_file()}
