"""Pools packed and unpacked, and a file split and joined."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("soxr")

import soundfile

from training.corpus import pack

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
    """Pools as the build writes them: a song of four stems, sources, and a pool of an older build."""
    folder = tmp_path / "pools"
    rows: list[dict[str, Any]] = []

    def add(pool: str, name: str, lengths: list[float], channels: int = 2, **extra: Any) -> None:
        (folder / pool).mkdir(parents=True, exist_ok=True)
        np.save(folder / pool / f"{name}.npy", music(sum(lengths), channels, seed=len(rows)))
        ends = np.cumsum([int(s * RATE) for s in lengths]).tolist()
        row = {"pool": pool, "source": name, "array": f"{pool}/{name}.npy", "labels": lengths}
        row |= {"minutes": ends[-1] / RATE / 60, "fingerprint": f"{len(rows):016x}", "licence": "CC0-1.0"}
        rows.append({**row, "segments": list(zip([0, *ends[:-1]], ends, strict=True)), **extra})

    add("accompaniment", "band", [4, 3])
    add("vocals", "singer", [2, 1, 3], 1)
    for stem in ("vocals", "drums", "bass", "other"):
        add("song", f"One.{stem}", [5], song="One", stem=stem)
    add("drums", "kit", [4])
    add("drumless", "band", [4])
    (folder / "manifest.json").write_text(json.dumps({"sources": rows}))
    return folder


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((folder / "manifest.json").read_text())["sources"]
    return {row["source"]: row for row in rows if row["pool"] in pack.ORDER}


@pytest.mark.slow
def test_unpacking_restores_the_pools(pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "CLIP", 3 * RATE)
    out, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    pack.pack(pools, out, limit=300_000)
    pieces = sorted(out.glob("piece-*"))
    assert len(pieces) >= 2 and all(pack.size(piece) <= 300_000 for piece in pieces)
    packed = [json.loads((piece / "piece.json").read_text()) for piece in pieces]
    assert all(sum(row["pool"] == "song" for row in rows) in (0, 4) for rows in packed)
    pack.unpack(pieces[:1], unpacked, processes=1)
    assert set(rows_of(unpacked)) == {row["source"] for row in packed[0]}
    minutes = pack.unpack(pieces, unpacked, processes=1)
    assert minutes == pytest.approx(sum(row["minutes"] for row in rows_of(pools).values()), abs=0.005)
    for name, row in rows_of(unpacked).items():
        before = rows_of(pools)[name]
        starts, old_starts = ({start for start, _ in r["segments"]} for r in (row, before))
        assert old_starts <= starts and row["segments"][-1][1] == before["segments"][-1][1]
        assert row["licence"] == "CC0-1.0"
        a, b = (np.load(f / row["array"]).astype(float) for f in (pools, unpacked))
        assert a.shape == b.shape
        assert 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()) > 10  # lossy, but aligned


def test_pools_take_turns_and_a_song_stays_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "CLIP", 10)
    names = ("vocals", "accompaniment", "drums", "bass", "other")
    rows = [{"pool": p, "source": f"{p}{i}", "segments": [(0, 4), (4, 29)]} for p in names for i in range(9)]
    rows += [
        {"pool": pool, "source": f"{i}.{stem}", "song": str(i), "segments": [(0, 99)]}
        for pool in ("song", "band") for i in range(4) for stem in ("drums", "bass")
    ]  # fmt: skip
    groups = pack.order_clips(rows)
    assert {group[0].row["pool"] for group in groups[:20]} == {*names, "song"}  # bands come late
    for group in groups:
        whole = group[0].row["pool"] in ("song", "band")
        assert len(group) == (2 if whole else 1)
        assert sum(end - start for start, end in group[0].segments) <= (99 if whole else 14)
    spans = [span for group in groups for clip in group for span in clip.segments]
    assert sum(end - start for start, end in spans) == 45 * 29 + 16 * 99
    numbers = [group[0].number for group in groups]
    assert numbers == sorted(numbers)


@pytest.mark.slow
def test_a_second_run_reuses_clips(pools: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    times = []
    for _ in range(2):
        pack.pack(pools, out, limit=2**20, pieces=1)
        times.append({path: path.stat().st_mtime_ns for path in (out / "encoded").iterdir()})
    assert times[0] == times[1]
    with pytest.raises(ValueError, match="does not fit into a piece"):
        pack.pack(pools, out, limit=1000)


@pytest.mark.parametrize(("shortest", "expected"), [(3, 0.3), (5, 0.1)])
def test_the_stems_of_a_validation_song_are_cut_at_the_same_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortest: int, expected: float
) -> None:
    """Both stems are loud for two seconds, then soft: the level shows where the excerpt was cut."""
    monkeypatch.setattr(pack, "VALID_SECONDS", (2, 4))
    (tmp_path / "songs/One").mkdir(parents=True)
    for stem, seconds in (("vocals", 5), ("drums", shortest)):
        time = np.arange(seconds * RATE) / RATE
        tone = np.where(time < 2, 0.3, 0.1) * np.sin(2 * np.pi * 440 * time)
        soundfile.write(tmp_path / f"songs/One/{stem}.wav", np.stack([tone, tone], axis=1), RATE)
    pack.write_excerpts(tmp_path / "songs", tmp_path / "valid")
    for stem in ("vocals", "drums"):
        audio, rate = soundfile.read(tmp_path / f"valid/One/{stem}.opus")
        assert len(audio) == pytest.approx(2 * rate, abs=rate / 10)
        assert np.abs(audio[rate // 2 : rate]).max() == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
def test_validation_songs_may_be_stem_mp4_files(
    pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stempeg = pytest.importorskip("stempeg")
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("stempeg wants ffmpeg")
    monkeypatch.setattr(pack, "VALID_SECONDS", (0, 1))
    (tmp_path / "songs").mkdir()
    streams = np.stack([music(2, 2, seed) / 32768 for seed in range(5)])
    stempeg.write_stems(str(tmp_path / "songs/Two.stem.mp4"), streams, sample_rate=RATE)
    words = ["--valid", str(tmp_path / "songs"), "--out", str(tmp_path / "packed"), "--mib", "0.6"]
    assert pack.main(["pack", "--pools", str(pools), *words]) == 0
    first = tmp_path / "packed/piece-1"
    assert capsys.readouterr().out.startswith(f"{first}: 0.")
    assert pack.main(["unpack", str(first), "--out", str(tmp_path / "unpacked")]) == 0
    files = sorted((tmp_path / "unpacked/valid/Two").iterdir())
    assert [file.stem for file in files] == ["bass", "drums", "other", "vocals"]
    assert [soundfile.info(file).duration for file in files] == pytest.approx([1] * 4, abs=0.05)
    drums = soundfile.read(tmp_path / "unpacked/valid/Two/drums.opus")[0][:, 0]
    wanted = np.abs(np.fft.rfft(streams[1, :RATE, 0])).argmax()
    assert np.abs(np.fft.rfft(drums)).argmax() * 48_000 / len(drums) == pytest.approx(wanted, abs=2)


def test_joining_restores_the_file_or_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, parts = tmp_path / "last.ckpt", tmp_path / "parts"
    for content in (bytes(range(256)) * 9, b"new" * 50):  # a smaller file in place of a larger one
        file.write_bytes(content)
        assert pack.main(["split", str(file), "--out", str(parts), "--mib", "0.0001"]) == 0
        assert max(path.stat().st_size for path in parts.iterdir()) <= 104
        assert pack.main(["join", str(parts), "--out", str(tmp_path / "back/last.ckpt")]) == 0
        assert (tmp_path / "back/last.ckpt").read_bytes() == content
    (parts / "part.1").unlink()
    assert pack.main(["join", str(parts), "--out", str(tmp_path / "again.ckpt")]) == 3
    assert "missing or damaged" in capsys.readouterr().err and not (tmp_path / "again.ckpt").exists()
