"""What the tables and the HTML report show of scores that are made up."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fakes import FakeBackend
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from tfswa_sep.cli import main as cli
from tfswa_sep.evaluation.methods import FolderMethod, Method, MixtureBaseline, ModelMethod
from tfswa_sep.evaluation.multitrack import Song, find_songs
from tfswa_sep.evaluation.report import html
from tfswa_sep.evaluation.report.excerpts import examples
from tfswa_sep.evaluation.report.html import PUBLISHED, html_report
from tfswa_sep.evaluation.report.paper import latex, markdown, paper_tables
from tfswa_sep.evaluation.report.tables import score_table, song_tables, summary_tables
from tfswa_sep.evaluation.results import (
    BASELINE,
    EXCERPTS,
    LABELS,
    Evaluation,
    Excerpt,
    MethodScores,
    SongScore,
    StemScore,
    read_evaluation,
)
from tfswa_sep.evaluation.run import evaluate

RATE = 44_100
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


@pytest.mark.slow
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


def test_tables_for_a_paper_have_their_best_numbers_in_bold() -> None:
    found = made_up(songs=2, methods=("model_a", "50 % better", "oracle"))
    levels = {"model_a": 5.0, "50 % better": 7.5, "oracle": 9.0}
    methods = [
        replace(
            method,
            kind=BASELINE if method.name == "oracle" else "model",
            songs=tuple(
                replace(song, stems={stem: StemScore({"sdr": levels[method.name] + up}) for stem in STEMS})
                for up, song in enumerate(method.songs)
            ),
        )
        for method in found.methods
    ]
    tables = paper_tables(found.with_methods(methods))
    rows = markdown(tables).splitlines()
    assert rows[0] == "SDR in dB (MUSDB18 test, 2 songs): median over the songs."
    assert rows[2:7] == [
        "| method | vocals | drums | bass | other | mean |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| model_a |{' 5.50 |' * 5}",
        f"| 50 % better |{' **8.00** |' * 5}",
        f"| oracle |{' 9.50 |' * 5}",
    ]
    assert r"**8.00 [7.50, 8.50]**" in markdown(tables)
    lines = latex(tables).splitlines()
    assert r"    model\_a" + 5 * " & 5.50" + r" \\" in lines
    assert r"    50 \% better" + 5 * r" & \textbf{8.00}" + r" \\" in lines
    assert r"\textbf{8.00} {\scriptsize [7.50, 8.50]}" in latex(tables)


def test_a_table_of_some_stems_only_has_no_mean_of_all() -> None:
    found = made_up(songs=2, methods=("ours", "theirs"))
    songs = tuple(replace(song, stems={"vocals": song.stems["vocals"]}) for song in found.methods[1].songs)
    found = found.with_methods([found.methods[0], replace(found.methods[1], songs=songs)])
    for table in paper_tables(found):
        assert table.rows["theirs"][0] is not None
        assert table.rows["theirs"][1:] == [None] * 4
    assert "& -- & -- & -- & --" in latex(paper_tables(found))


def test_published_models_are_marked_and_only_beside_comparable_scores() -> None:
    timed = made_up(songs=2, metrics=("sdr", "museval_sdr"))
    songs = tuple(replace(song, separation_seconds=9.0) for song in timed.methods[0].songs)
    timed = timed.with_methods([replace(timed.methods[0], songs=songs)])
    page = html_report(timed)
    assert page.count('class="published"') == len(PUBLISHED)
    assert "Hollow: published, not measured here" in page
    for other in (replace(timed, data="our songs"), replace(timed, data="MUSDB18 train")):
        assert 'class="published"' not in html_report(other)
        assert "Hollow" not in html_report(other)


def test_the_accompaniment_does_not_raise_the_mean_beside_published_ones() -> None:
    def with_time(song: SongScore) -> SongScore:
        stems = {stem: StemScore({"sdr": 6.0}) for stem in STEMS} | {
            "accompaniment": StemScore({"sdr": 16.0})
        }
        return replace(song, stems=stems, separation_seconds=9.0)

    found = made_up(songs=2)
    method = found.methods[0]
    found = found.with_methods([replace(method, songs=tuple(with_time(song) for song in method.songs))])
    chart = html._speed(found, "sdr")
    assert chart is not None
    lowest, highest = chart.y_ticks[0], chart.y_ticks[-1]
    assert (lowest[0], highest[0]) == ("5.4", "6.6")  # around 6 dB
    assert chart.points[0].y == pytest.approx((lowest[1] + highest[1]) / 2)


def test_excerpts_are_said_not_to_be_the_official_protocol() -> None:
    note = "not scores by the official MUSDB18 protocol"
    found = replace(made_up(songs=2), data=f"{EXCERPTS} test")
    assert note in html_report(found) and note in printed(score_table(found))
    assert note not in html_report(made_up(songs=2)) and note not in printed(score_table(made_up(songs=2)))


def write_song(folder: Path, **stems: NDArray[np.float64]) -> None:
    folder.mkdir(parents=True)
    for stem, samples in stems.items():
        soundfile.write(folder / f"{stem}.wav", samples, RATE, subtype="FLOAT")


@pytest.mark.slow
def test_the_best_and_the_worst_excerpt_can_be_seen_and_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    vocals, drums = np.round(rng.normal(0, 0.1, (2, 20 * RATE, 2)) * 2**15) / 2**15
    vocals[16 * RATE :] *= 1e-3  # far too quiet to be an example of anything
    error = np.full((20 * RATE, 1), 0.1)
    error[2 * RATE : 8 * RATE] = 0.01
    error[9 * RATE : 15 * RATE] = 0.5
    write_song(tmp_path / "data" / "one", vocals=vocals, drums=drums)
    write_song(tmp_path / "found" / "one", vocals=vocals + error * drums, drums=drums)
    songs, method = find_songs(tmp_path / "data"), FolderMethod(tmp_path / "found", "found")
    methods: list[Method] = [method, MixtureBaseline()]
    found = evaluate(songs, methods, data="data")
    (tmp_path / "record.json").write_text(found.to_json())
    read = read_evaluation(tmp_path / "record.json")
    assert [song.stems for song in read.methods[0].songs] == [song.stems for song in found.methods[0].songs]
    score = found.methods[0].songs[0].stems["vocals"]
    assert score.best is not None and score.worst is not None
    assert (score.best.start, score.worst.start) == (2, 9)
    assert score.best.sdr == pytest.approx(40, abs=0.1)
    assert score.worst.sdr == pytest.approx(6, abs=0.1)
    assert found.methods[0].songs[0].stems["drums"].best is None  # perfect

    decoded: list[Song] = []

    def decode(song: Song, folder: Path) -> Song:
        decoded.append(song)
        return song

    monkeypatch.setattr("tfswa_sep.evaluation.report.excerpts.decode_stems", decode)
    shown = examples(found, songs, methods)
    assert decoded == songs  # once, not for each excerpt
    assert [(each.stem, each.kind, each.start) for each in shown] == [
        ("vocals", "best", 2),
        ("vocals", "worst", 9),
    ]
    for example in shown:
        for clip in example.clips:
            sound, rate = soundfile.read(io.BytesIO(base64.b64decode(clip.sound.partition(",")[2])))
            assert rate == RATE and len(sound) / RATE == pytest.approx(6, abs=0.1)
            picture = Image.open(io.BytesIO(base64.b64decode(clip.picture.partition(",")[2])))
            assert picture.size == (259, 128)
    page = html_report(found, shown)
    assert page.count("<audio") == 4
    assert all(address.startswith("data:") for address in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("kept", (False, True))
@pytest.mark.slow
def test_an_excerpt_of_a_model_is_what_it_separated(tmp_path: Path, kept: bool) -> None:
    louder = np.linspace(0, 1, 20 * RATE)[:, None] ** 3  # every second by a third: shows where it is
    vocals, drums = louder * np.random.default_rng(0).normal(0, 0.1, (2, 20 * RATE, 2))
    write_song(tmp_path / "data" / "one", vocals=vocals, drums=drums)
    backend = FakeBackend(
        name="onnx",
        precision="fp32",
        stems=("vocals",),
        shares=(0.5,),
        segment_samples=20_480,
        margin_samples=2_048,
    )
    method = ModelMethod(backend, out=tmp_path / "out" if kept else None)
    songs = find_songs(tmp_path / "data")
    found = evaluate(songs, [method], data="data")
    before = (tmp_path / "out" / "one" / "vocals.wav").read_bytes() if kept else b""
    song = found.methods[0].songs[0]
    at_nine = {
        stem: replace(score, best=Excerpt(9, 1.0), worst=Excerpt(9, 1.0))
        for stem, score in song.stems.items()
    }
    found = found.with_methods([replace(found.methods[0], songs=(replace(song, stems=at_nine),))])
    shown = examples(found, songs, [method])
    assert len(shown) == 4  # also of the accompaniment
    sound, _ = soundfile.read(io.BytesIO(base64.b64decode(shown[0].clips[1].sound.partition(",")[2])))
    expected = 0.5 * (vocals + drums)[9 * RATE : 15 * RATE]
    for second in range(6):
        place = slice(second * RATE, (second + 1) * RATE)
        assert sound[place].std() == pytest.approx(expected[place].std(), rel=0.12)  # MP3 cuts the highs
    if kept:
        assert (tmp_path / "out" / "one" / "vocals.wav").read_bytes() == before
