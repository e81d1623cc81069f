"""What `tfswa-sep eval listen-results` makes of the files that a listening page exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tfswa_sep.cli.main import app
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.listening.answers import read_answers, sign_test, wilson


def exported(
    path: Path, answers: list[tuple[str, str | None]], methods: tuple[str, str] = ("a", "b")
) -> Path:
    told = [{"trial": trial, "better": better, "first": "a", "second": "b"} for trial, better in answers]
    record = {"format": 1, "methods": methods, "date": path.stem, "answers": told, "totals": {}}
    path.write_text(json.dumps(record), "utf-8")
    return path


def test_preferences_per_stem_and_over_all(tmp_path: Path) -> None:
    one = exported(
        tmp_path / "1.json", [*[(f"{i}/vocals", "b") for i in range(7)], ("1/vocals", "no difference")]
    )
    two = exported(tmp_path / "2.json", [("1/drums", "a"), ("2/drums", None)], methods=("b", "a"))
    found = read_answers([one, two])
    assert (found.files, found.unanswered) == (2, 1)
    by_name = {(each.stem, each.method): each for each in found.preferences}
    vocals = by_name["vocals", "b"]
    assert (vocals.answers, vocals.better, vocals.ties, vocals.share) == (8, 7, 1, 7.5 / 8)
    assert 0.5 < vocals.low < vocals.share < vocals.high < 1
    assert vocals.p_value == pytest.approx(2 / 2**7)  # seven of seven
    assert vocals.verdict == "preferred" and by_name["vocals", "a"].verdict == "not preferred"
    assert "no verdict" in by_name["drums", "a"].verdict
    assert by_name["all", "a"].share == pytest.approx(1.5 / 9)


def test_intervals_and_p_values_are_the_textbooks() -> None:
    assert wilson(0.9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert sign_test(9, 1) == sign_test(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert sign_test(0, 0) == sign_test(3, 3) == 1
    low, high = wilson(1.0, 6)  # unanimous answers do not give certainty
    assert low == pytest.approx(0.6097, abs=1e-4) and high == 1


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    file = exported(tmp_path / "1.json", [("x/vocals", "a"), ("y/vocals", "b")])
    table = CliRunner().invoke(app, ["eval", "listen-results", str(file)])
    assert table.exit_code == 0 and "50%" in table.stdout and "9% to 91%" in table.stdout
    told = json.loads(CliRunner().invoke(app, ["eval", "listen-results", str(file), "--json"]).stdout)
    first = told["preferences"][0]
    assert (first["stem"], first["method"], first["answers"], first["share"]) == ("vocals", "a", 2, 0.5)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"methods": ["a", "b"], "answers": 3, "date": ""}', '{"methods": ["a"]}']
)
def test_a_file_without_answers_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json contains no answers exported from a listening page$"):
        read_answers([tmp_path / "x.json"])


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    one = exported(tmp_path / "1.json", [("x/vocals", "a")])
    with pytest.raises(UsageError, match="contain the same answers"):
        read_answers([one, one])
    other = exported(tmp_path / "2.json", [("x/vocals", "c")], methods=("a", "c"))
    with pytest.raises(UsageError, match="analyse each test separately"):
        read_answers([one, other])
    with pytest.raises(UsageError, match="nothing to analyse"):
        read_answers([exported(tmp_path / "3.json", [("x/vocals", None)])])
    with pytest.raises(InputError, match="cannot be read"):
        read_answers([tmp_path / "none.json"])
