"""The record of experiments is complete: every page has a verdict and a row, every link leads somewhere."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

from training.analysis.plot_curves import CURVES, plot_curves

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
PAGES = sorted(EXPERIMENTS.glob("[0-9]*.md"))
DOCUMENTS = [EXPERIMENTS / "README.md", EXPERIMENTS / "small" / "README.md", *PAGES]
VERDICTS = {"adopted", "negative", "inconclusive", "finding"}


def test_pages_are_numbered_without_a_gap() -> None:
    assert [int(page.name[:3]) for page in PAGES] == list(range(1, len(PAGES) + 1))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_its_verdict_in_the_title_and_a_row_in_the_index(page: Path) -> None:
    text = page.read_text("utf-8")
    title = text.splitlines()[0]
    assert title.startswith(f"# {page.name[:3]} ")
    verdicts = re.findall(r"\((\w+)\)", title)
    assert verdicts and set(verdicts) <= VERDICTS
    assert "**Question.**" in text and "**Command.**" in text and "**Verdict.**" in text and "\n| ---" in text
    index = (EXPERIMENTS / "README.md").read_text("utf-8")
    row = f"| [{page.name[:3]}]({page.name}) | "
    (found,) = [line for line in index.splitlines() if line.startswith(row)]
    assert found.endswith(f" | {'; '.join(verdicts)} |")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda page: page.stem)
def test_links_and_modules_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (document.parent / target).exists(), target
    for module in re.findall(r"python\s-m\s(training[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda page: page.stem)
def test_rows_of_a_table_have_its_columns(document: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", document.read_text("utf-8"), re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_registry_has_the_recorded_scores() -> None:
    record = json.loads((EXPERIMENTS / "small" / "excerpts.json").read_text("utf-8"))
    means = next(method["mean"] for method in record["methods"] if method["name"] == "small")
    scores = tomllib.loads((ROOT / "models.toml").read_text("utf-8"))["models"]["small"]["scores"]
    assert scores == {stem: round(means[stem]["sdr"], 2) for stem in ("vocals", "drums", "bass", "other")}


@pytest.mark.parametrize("path", sorted(CURVES.glob("*.csv")), ids=lambda path: path.stem)
def test_curves_are_numbers_in_order(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row[column]) is not None for row in rows for column in row if column.endswith("_db"))
    if "step" in rows[0]:
        for leg in {row["leg"] for row in rows}:
            steps = [int(row["step"]) for row in rows if row["leg"] == leg]
            assert steps == sorted(set(steps))


def test_the_plot_is_that_of_the_curves() -> None:
    drawn = plot_curves(CURVES / "small.csv")
    assert (CURVES / "small.svg").read_text("utf-8") == drawn, "run: python -m training.analysis.plot_curves"
    assert drawn.count("<polyline") == 13
