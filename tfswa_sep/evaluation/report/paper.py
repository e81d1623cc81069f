"""Tables for a paper: one row per method, one column per stem, in Markdown and in LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfswa_sep.constants import ACCOMPANIMENT
from tfswa_sep.evaluation.compare import MEAN, bootstrap, mean_of_stems
from tfswa_sep.evaluation.results import BASELINE, EXCERPTS, LABELS, Evaluation, MethodScores

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{special: f"\\{special}" for special in "&%$#_{}"},
    }
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A number in dB."""

    value: float
    interval: tuple[float, float] | None = None
    is_best: bool = False  # of at least two methods, without baselines

    @property
    def text(self) -> str:
        """With two decimals, and the interval in square brackets."""
        between = f" [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.interval else ""
        return f"{self.value:.2f}{between}"


@dataclass(frozen=True)
class PaperTable:
    """A table with a caption."""

    caption: str
    columns: tuple[str, ...]
    rows: dict[str, list[Cell | None]]  # method -> one cell per column


def main_metric(evaluation: Evaluation) -> str:
    """museval's SDR where every method has it, else the global SDR."""
    official = all("museval_sdr" in method.metrics for method in evaluation.methods)
    return "museval_sdr" if official and evaluation.methods else "sdr"


def paper_tables(evaluation: Evaluation) -> list[PaperTable]:
    """The medians over the songs of the main metric, and the mean SDR over the songs with 95 % intervals."""
    songs = max((len(method.songs) for method in evaluation.methods), default=0)
    where = f"{evaluation.data}, {songs} song{'s' * (songs != 1)}"
    caveat = " Excerpts, not whole songs." if evaluation.data.startswith(EXCERPTS) else ""
    metric = main_metric(evaluation)
    official = metric == "museval_sdr"
    medians = (
        f"{LABELS[metric]} in dB ({where}): median over {'frames of 1 s, then over ' * official}the songs."
    )
    means = f"Global SDR in dB ({where}): mean over the songs, with 95 % bootstrap intervals."
    stems = evaluation.stems
    several = [stem for stem in stems if stem != ACCOMPANIMENT]
    columns = (*stems, *([MEAN] if len(several) > 1 else []))

    def median(method: MethodScores, column: str) -> Cell | None:
        values = [
            score[metric]
            for stem in (several if column == MEAN else [column])
            if (score := method.median(stem)[0]) is not None
        ]
        known = [value for value in values if value is not None]
        complete = len(known) == (len(several) if column == MEAN else 1)
        return Cell(float(np.mean(known))) if complete else None

    def mean(method: MethodScores, column: str) -> Cell | None:
        chosen = several if column == MEAN else [column]
        values = method.matrix(chosen, "sdr", [song.song for song in method.songs])
        if np.isnan(values).all(axis=0).any():
            return None
        values = values[~np.isnan(values).all(axis=1)]
        return Cell(mean_of_stems(values), bootstrap(values) if len(values) > 1 else None)

    tables = []
    for caption, cell in ((medians, median), (means, mean)):
        rows = {
            method.name: [cell(method, column) for column in columns]
            for method in evaluation.methods
            if method.stems
        }
        tables.append(PaperTable(caption + caveat, columns, _with_best(rows, evaluation)))
    return tables


def _with_best(rows: dict[str, list[Cell | None]], evaluation: Evaluation) -> dict[str, list[Cell | None]]:
    """The rows, with the best cell of every column marked."""
    names = [method.name for method in evaluation.methods if method.kind != BASELINE and method.name in rows]
    marked = {name: list(cells) for name, cells in rows.items()}
    for column in range(len(next(iter(rows.values()), []))):
        cells = {name: cell for name in names if (cell := rows[name][column]) is not None}
        if len(cells) > 1:
            best = max(cells, key=lambda name: cells[name].value)
            marked[best][column] = Cell(cells[best].value, cells[best].interval, is_best=True)
    return marked


def markdown(tables: Sequence[PaperTable]) -> str:
    """The tables in Markdown."""
    lines = []
    for table in tables:
        lines += [table.caption, "", _row(["method", *table.columns])]
        lines.append(_row(["---", *["---:"] * len(table.columns)]))
        for name, cells in table.rows.items():
            texts = [
                "-" if cell is None else f"**{cell.text}**" if cell.is_best else cell.text for cell in cells
            ]
            lines.append(_row([name.replace("|", "\\|"), *texts]))
        lines.append("")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex(tables: Sequence[PaperTable]) -> str:
    """The tables in LaTeX; they need the package booktabs."""
    lines = []
    for table in tables:
        lines += [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{table.caption.translate(_LATEX)}}}",
            rf"  \begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"    \toprule",
            f"    method & {' & '.join(name.translate(_LATEX) for name in table.columns)} \\\\",
            r"    \midrule",
        ]
        for name, cells in table.rows.items():
            texts = ["--" if cell is None else _latex_cell(cell) for cell in cells]
            lines.append(f"    {name.translate(_LATEX)} & {' & '.join(texts)} \\\\")
        lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _latex_cell(cell: Cell) -> str:
    value = f"{cell.value:.2f}".replace("-", "$-$")
    value = rf"\textbf{{{value}}}" if cell.is_best else value
    if cell.interval is None:
        return value
    between = f"[{cell.interval[0]:.2f}, {cell.interval[1]:.2f}]".replace("-", "$-$")
    return rf"{value} {{\scriptsize {between}}}"
