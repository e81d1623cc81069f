"""Packing for a lent GPU, unpacking there, and two calls of training: all of it on made-up sound."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("soxr")
pytest.importorskip("torch")

import soundfile
import torch

from training.lent_gpu import parts, prepare, unpack

ROOT = Path(__file__).resolve().parents[2]
RATE = 44_100


def music(seconds: float, channels: int, seed: int) -> np.ndarray:
    """Some tones in a little noise, int16 (n, c)."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * hertz * time) for hertz in rng.uniform(100, 4000, 4)) / 12
    sides = [tones + 0.01 * rng.standard_normal(len(time)) for _ in range(channels)]
    return np.asarray(np.rint(np.stack(sides, axis=1) * 32767), np.int16)


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    """Pools as the build writes them: a song of four stems, and a source in every other pool."""
    folder = tmp_path / "pools"
    rows: list[dict[str, Any]] = []

    def add(pool: str, name: str, lengths: list[float], channels: int, **extra: Any) -> None:
        array = music(sum(lengths), channels, seed=len(rows))
        (folder / pool).mkdir(parents=True, exist_ok=True)
        np.save(folder / pool / f"{name}.npy", array)
        ends = np.cumsum([int(s * RATE) for s in lengths]).tolist()
        row = {"pool": pool, "source": name, "array": f"{pool}/{name}.npy", "labels": lengths}
        row |= {"minutes": ends[-1] / RATE / 60, "fingerprint": f"{len(rows):016x}", "licence": "CC0-1.0"}
        rows.append({**row, "segments": list(zip([0, *ends[:-1]], ends, strict=True)), **extra})

    add("bass", "picked", [4], 2)
    add("accompaniment", "band", [4, 3], 2)
    add("vocals", "singer", [2, 1, 3], 1)
    for stem in ("vocals", "drums", "bass", "other"):
        add("song", f"One.{stem}", [5], 2, song="One", stem=stem)
    add("drums", "kit", [4], 2)
    add("other", "keys", [4], 2)
    (folder / "manifest.json").write_text(json.dumps({"sources": rows}))
    return folder


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["source"]: row for row in json.loads((folder / "manifest.json").read_text())["sources"]}


def test_what_is_unpacked_is_what_was_packed(
    pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "HELPING", 3 * RATE)
    lent, there = tmp_path / "lent", tmp_path / "there"
    rows = list(rows_of(pools).values())
    minutes = prepare.pack(rows, pools, lent, pieces=9, most=500_000, valid=None)
    assert len(minutes) >= 2
    assert all(prepare.size(folder) <= 500_000 for folder in lent.glob("piece-*"))
    first = json.loads((lent / "piece-1/piece.json").read_text())
    assert sum(row["pool"] == "song" for row in first) in (0, 4)
    unpack.unpack([lent / "piece-1"], there, processes=1)
    assert set(rows_of(there)) == {row["source"] for row in first}
    unpack.unpack(sorted(lent.glob("piece-*"))[1:], there, processes=1)
    assert sum(minutes) == pytest.approx(sum(row["minutes"] for row in rows), rel=1e-3)
    for name, row in rows_of(there).items():
        before = rows_of(pools)[name]
        starts, old_starts = ({start for start, _ in r["segments"]} for r in (row, before))
        assert old_starts <= starts and row["segments"][-1][1] == before["segments"][-1][1]
        assert row["licence"] == "CC0-1.0"
        a, b = (np.load(f / row["array"]).astype(float) for f in (pools, there))
        assert a.shape == b.shape
        assert 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()) > 10  # Opus, and in time


def test_pools_take_turns_and_a_song_stays_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "HELPING", 10)
    pools = ("vocals", "accompaniment", "drums", "bass", "other")
    rows = [
        {"pool": pool, "source": f"{pool}{i}", "fingerprint": "f" * 16, "segments": [(0, 4), (4, 29)]}
        for pool in pools
        for i in range(9)
    ]
    rows += [
        {"pool": pool, "source": f"{i}.{stem}", "fingerprint": "f" * 16, "song": str(i), "stem": stem,
         "segments": [(0, 99)]}
        for pool in ("song", "band") for i in range(4) for stem in ("drums", "bass")
    ]  # fmt: skip
    turns = prepare.in_turns(rows)
    assert {group[0].row["pool"] for group in turns[:20]} == {*pools, "song"}  # bands come late
    for group in turns:
        whole = group[0].row["pool"] in ("song", "band")
        assert len(group) == (2 if whole else 1)
        assert sum(end - start for start, end in group[0].segments) <= (99 if whole else 14)
    spans = [span for group in turns for helping in group for span in helping.segments]
    assert sum(end - start for start, end in spans) == 45 * 29 + 16 * 99
    numbers = [group[0].number for group in turns]
    assert numbers == sorted(numbers)


def test_a_second_run_encodes_nothing_anew(pools: Path, tmp_path: Path) -> None:
    rows = list(rows_of(pools).values())
    prepare.pack(rows, pools, tmp_path / "lent", pieces=1, most=2**20, valid=None)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "lent/encoded").iterdir()}
    prepare.pack(rows, pools, tmp_path / "lent", pieces=1, most=2**20, valid=None)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lent/encoded").iterdir()} == before
    with pytest.raises(ValueError, match="does not fit into a piece"):
        prepare.pack(rows, pools, tmp_path / "lent", pieces=1, most=1000, valid=None)


def test_parts_make_the_checkpoint_again_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", 100)
    (tmp_path / "run").mkdir()
    content = bytes(range(256)) * 5
    (tmp_path / "run/last.ckpt").write_bytes(content)
    parts.split(tmp_path / "run", tmp_path / "out")
    assert max(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 100
    (joined,) = parts.join(tmp_path / "out", tmp_path / "back")
    assert joined.read_bytes() == content
    (tmp_path / "out/last.ckpt.3").unlink()
    with pytest.raises(ValueError, match="do not make the file"):
        parts.join(tmp_path / "out", tmp_path / "again")
    assert not list((tmp_path / "again").iterdir())
    (tmp_path / "out/parts.json").write_text('{"../evil": ""}')
    with pytest.raises(ValueError, match="is none of"):
        parts.join(tmp_path / "out", tmp_path / "again")


def test_a_cut_takes_the_place_of_a_larger_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", 100)
    (tmp_path / "run").mkdir()
    for name, count in (("last.ckpt", 500), ("best.ckpt", 300)):
        (tmp_path / "run" / name).write_bytes(bytes(count))
    parts.split(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run/best.ckpt").unlink()
    (tmp_path / "run/last.ckpt").write_bytes(b"new" * 50)
    parts.split(tmp_path / "run", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["last.ckpt.0", "last.ckpt.1", "parts.json"]
    (joined,) = parts.join(tmp_path / "out", tmp_path / "back")
    assert joined.read_bytes() == b"new" * 50


def test_a_checkpoint_that_does_not_come_home_stays_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "MOST", 1000)
    (tmp_path / "run").mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "run" / name).write_bytes(bytes(1001))
    assert parts.main(["split", str(tmp_path / "run"), str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    assert "last.ckpt has" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "run/last.ckpt").write_bytes(bytes(600))
    assert parts.main(["split", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("best.ckpt stays behind")
    assert [path.name for path in parts.join(tmp_path / "out", tmp_path / "back")] == ["last.ckpt"]


def test_a_call_fails_where_its_checkpoints_cannot_be_cut(tmp_path: Path) -> None:
    python = tmp_path / "python"  # all that it runs goes well, but for the cut
    python.write_text('#!/bin/bash\n[[ "$*" != *"parts split"* ]]\n')
    python.chmod(0o755)
    places = {"OUT": str(tmp_path / "out"), "LENT": str(tmp_path / "machine"), "PYTHON": str(python)}
    done = subprocess.run(
        [str(ROOT / "training/lent_gpu/call.sh"), "9", "1"],
        cwd=tmp_path, env=os.environ | places, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "out/log.txt").is_file()


def test_old_wheels_go_and_every_package_has_a_version(tmp_path: Path) -> None:
    versions, old = tmp_path / "constraints/torch213.txt", tmp_path / ".lent/wheels/soxr-0.5.0.whl"
    for path in (versions, old):
        path.parent.mkdir(parents=True)
        path.touch()
    lines = (ROOT / "constraints/torch213.txt").read_text().splitlines(keepends=True)

    def fetch() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "training/lent_gpu/wheels.sh")],
            cwd=tmp_path, env=os.environ | {"PYTHON": "true"},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    versions.write_text("".join(line for line in lines if not line.startswith("soxr==")))
    done = fetch()
    assert done.returncode != 0 and "pins no soxr" in done.stderr
    assert old.is_file()  # nothing was begun
    versions.write_text("".join(lines))
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert not old.exists()


@pytest.mark.parametrize(("shortest", "expected"), [(3, 0.3), (5, 0.1)])
def test_the_stems_of_a_validation_song_are_cut_at_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortest: int, expected: float
) -> None:
    """Both stems are loud for two seconds, then soft: the excerpt is where the shorter one has it."""
    monkeypatch.setattr(prepare, "VALID_SECONDS", (2, 4))
    (tmp_path / "songs/One").mkdir(parents=True)
    for stem, seconds in (("vocals", 5), ("drums", shortest)):
        time = np.arange(seconds * RATE) / RATE
        tone = np.where(time < 2, 0.3, 0.1) * np.sin(2 * np.pi * 440 * time)
        soundfile.write(tmp_path / f"songs/One/{stem}.wav", np.stack([tone, tone], axis=1), RATE)
    prepare.valid_excerpts(tmp_path / "songs", tmp_path / "valid")
    for stem in ("vocals", "drums"):
        audio, rate = soundfile.read(tmp_path / f"valid/One/{stem}.opus")
        assert len(audio) == pytest.approx(2 * rate, abs=rate / 10)
        assert np.abs(audio[rate // 2 : rate]).max() == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
def test_two_calls_train_one_model(pools: Path, tmp_path: Path) -> None:
    """The second call, on a machine that was given back, goes on from what the first one brought home."""
    valid = tmp_path / "valid/Song"
    valid.mkdir(parents=True)
    for number, stem in enumerate(("vocals", "drums")):
        soundfile.write(valid / f"{stem}.wav", music(4, 2, seed=20 + number), RATE)
    copy = tmp_path / "copy"  # as a call finds it: the tree and what is carried
    for name in ("training", "tfswa_sep"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "models.toml", copy)
    rows = list(rows_of(pools).values())
    prepare.pack(rows, pools, copy / ".lent", pieces=1, most=2**20, valid=valid.parent)
    for call, steps in enumerate((1, 2), start=1):
        environment = os.environ | {
            "OUT": str(tmp_path / f"out{call}"), "LENT": str(tmp_path / f"machine{call}"),
            "TRAINING": "debug", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [
            "training/lent_gpu/call.sh",
            "500",
            str(steps),
            "training.batch_size=1",
            "data.mix.seconds=1",
        ]
        done = subprocess.run(
            [*command, "training.workers=0", "data.valid_seconds=1", "training.validate_every=1"],
            cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=550,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        home = tmp_path / f"out{call}"
        assert "log.txt" in {path.name for path in home.iterdir()}
        assert max(path.stat().st_size for path in home.iterdir()) <= 16 * 2**20
        written = parts.join(home, tmp_path / f"home{call}")
        assert torch.load(written[0], weights_only=True)["step"] == steps
        shutil.copytree(home, copy / ".lent/start", dirs_exist_ok=True)
