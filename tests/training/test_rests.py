"""Rests of drums and bass: found in estimates, kept in a table, and mixed with what is known again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("soxr")

from training.corpus import build, find_rests, rests
from training.corpus.recorded.sources import SAMPLE_RATE, Piece, Source
from training.mixing.mixer import STEMS, Mixer
from training.mixing.settings import MixSettings

FOUND: rests.Rests = {
    ("game", "one.ogg", "drums"): [(0, 6), (8, 12)],
    ("game", "one.ogg", "bass"): [(1, 10)],
    ("game", "two.ogg", "bass"): [(2, 99)],
}


def accompaniment(seconds: tuple[int, int] = (20, 30)) -> dict[str, Any]:
    edges = np.cumsum([0, *seconds]) * SAMPLE_RATE
    return {
        "pool": "accompaniment", "source": "game", "licence": "CC0-1.0", "minutes": sum(seconds) / 60,
        "array": "accompaniment/game.npy", "fingerprint": "f", "labels": ["one.ogg", "two.ogg"],
        "segments": list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)),
    }  # fmt: skip


def test_rests_become_rows_that_point_into_the_same_array() -> None:
    others = [{**accompaniment(), "pool": "other"}, {**accompaniment(), "array": None}]
    rows = {row["pool"]: row for row in rests.resting_rows([accompaniment(), *others], FOUND)}

    def seconds(pool: str) -> list[tuple[float, float]]:
        return [(start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in rows[pool]["segments"]]

    assert seconds("drumless") == [(0, 6), (8, 12)]
    assert seconds("bassless") == [(1, 10), (22, 50)]  # the second piece begins at 20 s and ends at 50
    assert seconds("neither") == [(1, 6)]  # 8 to 10 s is too short
    assert rows["bassless"]["labels"] == ["one.ogg", "two.ogg"]
    assert rows["bassless"]["minutes"] == pytest.approx(37 / 60, abs=1e-3)
    assert {row["array"] for row in rows.values()} == {"accompaniment/game.npy"}
    assert {row["licence"] for row in rows.values()} == {"CC0-1.0"}
    assert len({row["fingerprint"] for row in rows.values()}) == 3
    assert not list(rests.resting_rows([accompaniment()], {}))


def test_the_table_says_what_can_be_read() -> None:
    found = rests.read_rests()
    assert len(found) > 100 and {stem for _, _, stem in found} == set(find_rests.STEMS)
    for spans in found.values():
        ends = [time for span in spans for time in span]
        assert ends == sorted(ends) and all(end - begin >= rests.SHORTEST for begin, end in spans)


def test_the_build_lists_rests_beside_the_music(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def music(source: Source, rng: np.random.Generator) -> Any:
        yield Piece(np.full((20 * SAMPLE_RATE, 2), 0.1, np.float32), "one.ogg")

    monkeypatch.setitem(build.RECIPES, "music", music)
    monkeypatch.setattr(build, "read_rests", lambda: FOUND)
    source = Source("accompaniment", "game", "CC0-1.0", "permissive", "1", "music", ())
    for _ in range(2):  # the second time the array is kept
        rows = build.build([source], tmp_path, processes=1)
        assert [row["pool"] for row in rows] == ["accompaniment", "drumless", "bassless", "neither"]
    assert json.loads((tmp_path / "manifest.json").read_text())["sources"][3]["minutes"] == round(5 / 60, 3)
    assert not (tmp_path / "drumless").is_dir()


@pytest.mark.parametrize(
    ("kind", "known"),
    [("drumless", [1, 1, 0, 0]), ("bassless", [1, 0, 1, 0]), ("neither", [1, 1, 1, 1])],
)
def test_what_rests_is_played_by_others_and_known(own_pools: Path, kind: str, known: list[int]) -> None:
    settings = MixSettings(seconds=0.3, kinds={kind: 1.0}, drop=dict.fromkeys([*STEMS, "accompaniment"], 0.0))
    _, stems, unresting = Mixer(own_pools, settings).batch(0, 3)
    assert unresting.tolist() == [[1, 0, 0, 0]] * 3  # no rests in these pools: mixed music alone
    path = own_pools / "manifest.json"
    content = json.loads(path.read_text())
    row = next(row for row in content["sources"] if row["pool"] == "accompaniment")
    content["sources"].append({**row, "pool": kind, "segments": [(10_000, 60_000)]})
    path.write_text(json.dumps(content))
    mixture, stems, found = Mixer(own_pools, settings).batch(0, 3)
    assert found.tolist() == [known] * 3
    assert ((stems.abs().amax(dim=(2, 3)) > 0.01) == found.bool()).all()
    rest = (mixture - stems.sum(dim=1)).abs().amax(dim=(1, 2))
    assert (rest < 1e-5).all() if all(known) else (rest > 0.01).all()


class Listener:
    """Hears half of the music as bass, and drums from the fifth second on."""

    def __init__(self, model: str, *, precision: str) -> None:
        assert (model, precision) == ("small", "int8")

    def separate(self, music: np.ndarray, sample_rate: int) -> dict[str, np.ndarray]:
        drums = music * 0.5
        drums[:, : 5 * sample_rate] = 0
        return {"drums": drums, "bass": music * 0.5}


def test_rests_are_found_where_an_estimate_stays_low(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = accompaniment((8, 10))
    samples = np.random.default_rng(0).integers(-9000, 9000, (18 * SAMPLE_RATE, 2)).astype(np.int16)
    samples[8 * SAMPLE_RATE : 9 * SAMPLE_RATE] = 0  # silence is no rest: nothing plays
    (tmp_path / "accompaniment").mkdir()
    np.save(tmp_path / row["array"], samples)
    (tmp_path / "manifest.json").write_text(json.dumps({"sources": [row]}))
    monkeypatch.setattr(find_rests, "Separator", Listener)
    out = tmp_path / "rests.tsv"
    options = ["--pools", str(tmp_path), "--scan", str(tmp_path / "scan"), "--out", str(out)]
    assert find_rests.main(options) == 0 and "2 rests" in capsys.readouterr().out
    found = rests.read_rests(out)
    assert found == {("game", "one.ogg", "drums"): [(0, 5)], ("game", "two.ogg", "drums"): [(1, 5)]}

    def again(*_: Any) -> None:
        raise AssertionError("a source that was scanned is scanned again")

    monkeypatch.setattr(find_rests, "scan", again)
    assert find_rests.main(options) == 0
    row["labels"] = ["one.ogg", "one.ogg"]  # which of the two would the table mean?
    (tmp_path / "manifest.json").write_text(json.dumps({"sources": [row]}))
    assert find_rests.main(options) == 0 and not rests.read_rests(out)
    (tmp_path / "manifest.json").write_text(json.dumps({"sources": []}))
    with pytest.raises(SystemExit):
        find_rests.main(options)
    assert "holds no accompaniment" in capsys.readouterr().err
