"""What the tables and the HTML report show of scores that are made up."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from tfswa_sep.cli import main as cli
from tfswa_sep.evaluation.report.html import html_report
from tfswa_sep.evaluation.report.tables import score_table, song_tables, summary_tables
from tfswa_sep.evaluation.results import LABELS, Evaluation, MethodScores, SongScore, StemScore

STEMS = ("vocals", "drums", "bass", "other")


def made_up(
    *, songs: int, methods: Sequence[str] = ("ours",), metrics: Sequence[str] = ("sdr",)
) -> Evaluation:
    rng = np.random.default_rng(0)

    def score(number: int) -> SongScore:
        stems = {stem: StemScore({name: float(rng.normal(6, 2)) for name in metrics}) for stem in STEMS}
        name = f"An Artist of Some Fame - The Song with Number {number}"
        return SongScore(name, 180.0, None, False, stems, {}, ())

    scored = [
        MethodScores(name, "estimates", tuple(score(number) for number in range(songs))) for name in methods
    ]
    return Evaluation("MUSDB18 test", (), tuple(scored), "tfswa-sep eval", "2026-01-01", "here", {})


def printed(*tables: Table, width: int = 500) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(*tables)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_no_number_is_cut_at_80_columns() -> None:
    found = made_up(songs=2, methods=("a model with a long name", "theirs"), metrics=tuple(LABELS))
    for tables in (song_tables(found.methods[0], "data", width=80), summary_tables(found, width=80)):
        text = printed(*tables, width=80)
        assert len(tables) > 1 and "…" not in text
        assert "…" in printed(*song_tables(found.methods[0], "data"), width=80)
    shown = [
        str(column.header)
        for table in song_tables(found.methods[0], "data", width=80)
        for column in table.columns
    ]
    assert [name for name in shown if name not in ("song", "stem")] == list(LABELS.values())


def test_fast_ratios_are_never_shown_without_their_error() -> None:
    found = made_up(songs=1, metrics=("sdr", "fast_sdr", "fast_sir", "fast_sar"))
    for text in (
        printed(*song_tables(found.methods[0], "data")),
        printed(*summary_tables(found)),
        html_report(found),
    ):
        assert "differ from those of museval and mir_eval by up to 0.7 dB" in " ".join(text.split())
    assert "by up to 0.7 dB" not in html_report(made_up(songs=1))


def test_scores_are_shown_with_how_sure_they_are() -> None:
    text = printed(score_table(made_up(songs=40, methods=("ours", "theirs"), metrics=("sdr", "frame_sdr"))))
    # 40 draws with a deviation of 2 dB: about 0.6 dB to either side, half of that for the mean of four stems
    rows = re.findall(r"ours 40 (\S+) (\S+) to (\S+) (\S+)", text)
    assert len(rows) == 5
    for number, row in enumerate(rows):
        mean, low, high, median = map(float, row)
        assert mean - low == pytest.approx(0.62 if number < 4 else 0.31, abs=0.2)
        assert low < mean < high and abs(median - 6) < 1
    assert text.count("mean ours") == text.count("mean theirs") == 1


def test_nothing_in_a_chart_of_48_songs_is_clipped() -> None:
    page = html_report(made_up(songs=48, methods=("ours", "theirs", "others", "mixture")))
    names = re.findall(r'<span class="song" title="([^"]*)">([^<]*)<', page)
    assert len(names) == 48 * len(STEMS)
    assert all(title == name for title, name in names)
    places = [float(place) for place in re.findall(r'x[12]?="([\d.-]+)%"', page)]
    assert len(places) > 48 * len(STEMS) * 4
    assert all(0 <= place <= 100 for place in places)


def test_charts_by_song_share_one_axis() -> None:
    page = html_report(made_up(songs=3))
    axes = re.findall(r'<span></span><svg height="20">(.*?)</svg>', page, re.DOTALL)
    assert len(axes) == len(STEMS)
    assert len(set(axes)) == 1


def test_names_are_escaped() -> None:
    page = html_report(made_up(songs=1, methods=("<script>alert(1)</script>",)))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)  # not installed
    assert cli.run(["eval", "--data", "nowhere", "--report", "results"]) == 2
    assert "--report needs jinja2" in capsys.readouterr().err
