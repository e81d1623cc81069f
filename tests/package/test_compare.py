"""A difference is claimed where there is one, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tfswa_sep.cli import main
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.compare import bootstrap, compare_records
from tfswa_sep.evaluation.results import Evaluation, MethodScores, SongScore, StemScore


def record(path: Path, sdrs: Sequence[float | None], *, data: str = "songs", seconds: float = 1.0) -> Path:
    songs = tuple(
        SongScore(f"song {index}", seconds, None, False, {"vocals": StemScore({"sdr": value})}, {}, ())
        for index, value in enumerate(sdrs)
    )
    method = MethodScores("tool", "estimates", songs)
    path.write_text(Evaluation(data, (), (method,), "c", "d", "m", {}).to_json())
    return path


def test_the_pairs_are_what_counts(tmp_path: Path) -> None:
    """Songs differ by 3 dB, the methods by 0.5 on each: unpaired this would drown."""
    base = np.random.default_rng(0).normal(5, 3, 20)
    noise = np.random.default_rng(1).normal(0, 0.2, 20)
    first = record(tmp_path / "a.json", list(base))
    better = record(tmp_path / "b.json", list(base + 0.5 + noise))
    (found,) = compare_records([first, better]).differences
    assert found.difference == pytest.approx(0.5 + noise.mean())
    assert found.low is not None and found.high is not None
    standard_error = noise.std() / np.sqrt(20)
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert found.verdict == "tool (b.json) is better"
    assert compare_records([first, better]).differences == (found,)  # the draws are seeded
    (none,) = compare_records(
        [first, record(tmp_path / "c.json", list(base + noise - noise.mean()))]
    ).differences
    assert none.verdict == "no difference shown"


def stems_record(path: Path, **songs: tuple[float | None, ...]) -> Path:
    """Scores of vocals, drums and accompaniment, by song; None where a song lacks the stem."""
    names = ("vocals", "drums", "accompaniment")
    scores = tuple(
        SongScore(
            song, 1.0, None, False,
            {stem: StemScore({"sdr": sdr}) for stem, sdr in zip(names, sdrs, strict=True) if sdr is not None},
            {}, (),
        )
        for song, sdrs in songs.items()
    )  # fmt: skip
    method = MethodScores("tool", "estimates", scores)
    path.write_text(Evaluation("songs", (), (method,), "c", "d", "m", {}).to_json())
    return path


def test_the_mean_of_the_stems_is_compared_too(tmp_path: Path) -> None:
    """The accompaniment does not count as a stem, and a song counts only for the stems it has."""
    first = stems_record(tmp_path / "a.json", one=(1, 2, 3), two=(1, None, 3), three=(1, None, 3))
    second = stems_record(tmp_path / "b.json", one=(2, 4, 90), two=(1, None, 90), three=(2.5, None, 3))
    found = {each.stem: each for each in compare_records([first, second]).differences}
    assert list(found) == ["vocals", "drums", "accompaniment", "mean"]
    vocals, drums, _, mean = found.values()
    assert (vocals.difference, drums.difference) == pytest.approx((2.5 / 3, 2))
    assert mean.difference == pytest.approx((2.5 / 3 + 2) / 2)
    assert (mean.mean_first, mean.mean_second) == pytest.approx((1.5, (5.5 / 3 + 4) / 2))
    assert (mean.songs, mean.second_better_in) == (3, 2)
    assert mean.low is not None and mean.high is not None and mean.low < mean.difference < mean.high
    singles = [record(tmp_path / f"{n}.json", [float(n)]) for n in (1, 2)]
    assert "mean" not in {each.stem for each in compare_records(singles).differences}


def test_a_song_without_any_number_does_not_count() -> None:
    values = np.random.default_rng(0).normal(0, 1, (10, 2))
    assert bootstrap(np.concatenate([values, np.full((3, 2), np.nan)])) == bootstrap(values)


def test_an_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfswa_sep.evaluation.compare.DRAWS", 1000)
    rng = np.random.default_rng(7)
    hits = sum(low < 1 < high for low, high in (bootstrap(rng.normal(1, 2, 40)) for _ in range(100)))
    assert 88 <= hits <= 99


def test_what_cannot_be_compared_is_reported(tmp_path: Path) -> None:
    first = record(tmp_path / "a.json", [1.0, 2.0])
    (few,) = compare_records([first, record(tmp_path / "b.json", [9.0, 9.0])]).differences
    assert few.verdict == "fewer than 6 songs: no verdict"
    with pytest.raises(UsageError, match=r"no stem has a 'sdr' from both .* nor does a perfect estimate"):
        compare_records([first, record(tmp_path / "perfect.json", [None, None])])
    with pytest.raises(UsageError, match="no song in common"):
        compare_records([first, record(tmp_path / "none.json", [])])
    with pytest.raises(UsageError, match="only one method"):
        compare_records([first])
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(InputError, match="not a record of"):
        compare_records([first, tmp_path / "no.json"])


def test_songs_are_matched_by_name_whatever_their_folder_is_called(tmp_path: Path) -> None:
    first = record(tmp_path / "a.json", [1.0, 2.0])
    same = compare_records([first, record(tmp_path / "b.json", [2.0, 3.0], data="copy of songs")])
    assert [each.difference for each in same.differences] == [1.0] and not same.warnings
    more = compare_records([first, record(tmp_path / "c.json", [2.0, 3.0, 4.0], data="others")])
    assert more.differences[0].songs == 2
    assert more.warnings == (
        "the songs differ: 2 are in both records and are compared; 0 only in tool (a.json), "
        "1 only in tool (c.json)",
    )
    (cut,) = compare_records([first, record(tmp_path / "d.json", [2.0, 3.0], seconds=7)]).warnings
    assert "'song 0' lasts 1 s in tool (a.json) and 7 s in tool (d.json) (2 such songs)" in cut


def test_a_table_fits_80_columns_and_says_once_that_songs_are_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = {f"song{n}": (5.0, 6.0, -3.0) for n in range(6)}
    paths = [stems_record(tmp_path / "a rather long name.json", **songs)]
    paths.append(stems_record(tmp_path / "another.json", **dict.fromkeys(songs, (4.0, 6.0, 0.0))))
    paths.append(stems_record(tmp_path / "fewer.json", song0=(1.0, 2.0, 3.0), song1=(2.0, 3.0, 4.0)))
    assert main.run(["eval", "compare", *map(str, paths)]) == 0
    out, _ = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert out.count("fewer than 6 songs") == 1
    verdicts = [line.split()[-1] for line in out.splitlines() if line.startswith(("vocals", "drums"))]
    assert verdicts == ["worse", "unclear", "-", "-"]
