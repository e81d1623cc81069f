"""What a cluster's workers and the program that hands out songs do, without Ray: stores, catalogues, rows."""

from __future__ import annotations

import errno
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from fakes import EvenBackend, write_song

from tfswa_sep import separator
from tfswa_sep.cli import batch
from tfswa_sep.cluster import store as stores
from tfswa_sep.cluster.store import Store, fetch, walk
from tfswa_sep.errors import InputError, OutputError, UsageError
from tfswa_sep.options import OutputOptions, Runtime
from tfswa_sep.registry import default_model

pa = pytest.importorskip("pyarrow")
from tfswa_sep.cluster import rows
from tfswa_sep.cluster.catalog import Catalog, Song, is_in, write_catalog
from tfswa_sep.cluster.estimate import Estimate
from tfswa_sep.cluster.run import Cluster, Summary
from tfswa_sep.cluster.worker import Job, SongWorker


@pytest.fixture(autouse=True)
def instant(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model that costs nothing, no pauses, and an empty memory:// store."""
    monkeypatch.setattr(separator, "load_backend", lambda *args, **options: EvenBackend())
    monkeypatch.setattr(stores, "_FIRST_PAUSE", 0.0)
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def job(target: str, **options: Any) -> Job:
    overwrite = options.pop("overwrite", False)
    return Job(
        target=target,
        model=default_model(),
        runtime=Runtime(threads=1),
        options=OutputOptions(**options),
        overwrite=overwrite,
    )


def song(source: str, *, track: str = "s", folder: str = "", version: str = "") -> Song:
    return Song(source, folder, track, None, version, {})


@pytest.fixture
def uploaded(tmp_path: Path) -> str:
    write_song(tmp_path / "s.wav", seconds=0.3)
    with fsspec.open("memory://in/s.wav", "wb") as file:
        file.write((tmp_path / "s.wav").read_bytes())
    return "memory://in/s.wav"


@pytest.mark.parametrize("target", ["memory://out", "{tmp}/out"])
def test_a_song_is_fetched_separated_and_stored(tmp_path: Path, uploaded: str, target: str) -> None:
    target = target.format(tmp=tmp_path)
    row = SongWorker(job(target)).separate(song(uploaded, folder="album"))
    assert row["state"] == "done", row
    assert row["seconds"] == pytest.approx(0.3)
    store = Store(target)
    assert store.names_in("album/s") == {"vocals.wav", "drums.wav", "bass.wav", "other.wav", ".s.row.json"}
    plain = separator.separate(tmp_path / "s.wav", out=tmp_path / "plain")
    for stem, path in plain.files.items():
        stored, _ = soundfile.read(io.BytesIO(store.read(f"album/s/{stem}.wav") or b""))
        assert np.array_equal(stored, soundfile.read(path)[0])  # the headers have times
    assert row["stems"] == [f"album/s/{stem}.wav" for stem in plain.files]


def test_a_finished_song_is_not_separated_again(uploaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = SongWorker(job("memory://out")).separate(song(uploaded))
    again = SongWorker(job("memory://out"))
    monkeypatch.setattr(separator.Separator, "separate_file", None)
    second = again.separate(song(uploaded))
    for key in ("state", "stems", "sha256", "seconds", "version", "stem_bytes"):
        assert first[key] == second[key]


def test_other_options_or_a_changed_song_are_separated(uploaded: str) -> None:
    SongWorker(job("memory://out")).separate(song(uploaded))
    row = SongWorker(job("memory://out", audio_format="flac")).separate(song(uploaded))
    assert row["state"] == "done", row
    # The stems of the run before are gone, since their row is.
    names = Store("memory://out").names_in("s")
    assert names == {"vocals.flac", "drums.flac", "bass.flac", "other.flac", ".s.row.json"}
    before = SongWorker(job("memory://out")).separate(song(uploaded, version="1"))
    after = SongWorker(job("memory://out")).separate(song(uploaded, version="2"))
    assert (before["version"], after["version"]) == ("1", "2")


def test_settings_of_the_model_are_part_of_the_work() -> None:
    plain = job("memory://out")
    for change in ({"model_settings": "n_fft=6144"}, {"shifts": 2}, {"precision": "fp32"}):
        assert replace(plain, runtime=replace(plain.runtime, **change)).work != plain.work
    assert replace(plain, runtime=replace(plain.runtime, threads=2)).work == plain.work


def test_files_of_others_are_not_replaced(uploaded: str) -> None:
    store = Store("memory://out")
    store.write("s/vocals.wav", b"precious")
    row = SongWorker(job("memory://out")).separate(song(uploaded))
    assert (row["state"], row["error"]) == ("failed", "OutputError")
    assert "s/vocals.wav exists already" in row["message"]
    assert store.read("s/vocals.wav") == b"precious"
    assert SongWorker(job("memory://out", overwrite=True)).separate(song(uploaded))["state"] == "done"
    other = SongWorker(job("memory://out")).separate(song("memory://in/another.wav"))
    assert "has the stems of memory://in/s.wav" in other["message"]


def test_a_song_whose_worker_died_while_storing_is_done_again(
    uploaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, count = Store.put, 0

    def dying(self: Store, file: Path, name: str) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt  # nothing is cleaned up, as with SIGKILL
        put(self, file, name)

    monkeypatch.setattr(Store, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        SongWorker(job("memory://out")).separate(song(uploaded))
    assert len(Store("memory://out").names_in("s")) == 3
    assert SongWorker(job("memory://out")).separate(song(uploaded))["state"] == "done"


@pytest.mark.parametrize("source", ["memory://in/none.wav", "{tmp}/none.wav"])
def test_a_missing_song_gets_a_row(tmp_path: Path, source: str) -> None:
    row = SongWorker(job("memory://out")).separate(song(source.format(tmp=tmp_path)))
    assert (row["state"], row["error"]) == ("failed", "InputError")
    assert "none.wav" in row["message"]


def test_a_damaged_song_gets_a_row(tmp_path: Path) -> None:
    with fsspec.open("memory://in/s.wav", "wb") as file:
        file.write(b"nothing of the kind")
    row = SongWorker(job("memory://out")).separate(song("memory://in/s.wav"))
    assert row["error"] == "InputError"
    assert not Store("memory://out").names_in("s")


def test_operations_are_retried_unless_they_are_final() -> None:
    calls = 0

    def sometimes(error: type[Exception]) -> Callable[[], str]:
        def operation() -> str:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise error("busy")
            return "done"

        return operation

    assert stores.retry(sometimes(OSError)) == "done"
    assert calls == 3
    calls = 0
    with pytest.raises(FileNotFoundError):
        stores.retry(sometimes(FileNotFoundError))
    assert calls == 1


def test_a_body_that_was_cut_is_fetched_again(
    uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = type(fsspec.filesystem("memory"))
    whole, calls = system.get_file, 0

    def cut(self: Any, source: str, file: str, **options: Any) -> None:
        nonlocal calls
        calls += 1
        whole(self, source, file, **options)
        if calls < 3:
            Path(file).write_bytes(Path(file).read_bytes()[:100])

    monkeypatch.setattr(system, "get_file", cut)
    fetch(uploaded, tmp_path / "copy.wav", size=None)
    assert (tmp_path / "copy.wav").read_bytes() == (tmp_path / "s.wav").read_bytes()
    calls = -100
    with pytest.raises(InputError, match=r"in/s\.wav cannot be read: got 100 of \d+ bytes"):
        fetch(uploaded, tmp_path / "copy.wav", size=None)


def test_a_failed_upload_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"new")
    store = Store(str(tmp_path / "out"))
    store.write("file", b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OutputError, match="cannot be written: full"):
        store.put(tmp_path / "file", "file")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert store.read("file") == b"old"


def test_a_target_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"\.check cannot be written: (File exists|Not a directory)$"):
        Store(str(tmp_path / "file")).check_writable()
    Store(str(tmp_path / "out")).check_writable()
    assert not any((tmp_path / "out").iterdir())


def test_a_stem_on_another_file_system_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (tmp_path / "file").write_bytes(b"new")
    monkeypatch.setattr("os.link", link)
    Store(str(tmp_path / "out")).put(tmp_path / "file", "file")
    assert (tmp_path / "out" / "file").read_bytes() == b"new"


def test_unknown_stores_are_refused() -> None:
    with pytest.raises(UsageError, match="nowhere://x cannot be opened"):
        Store("nowhere://x")


def test_folders_are_walked_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.wav", "a/c.wav", ".hidden/d.wav", "a/.e.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    names = [entry.url.removeprefix(f"{tmp_path}/") for entry in walk(Store(str(tmp_path)))]
    assert names == ["b.wav", "a/c.wav"]
    with pytest.raises(InputError, match="no such folder"):
        list(walk(Store(str(tmp_path / "none"))))


def catalog_of(tmp_path: Path, source: str | Path) -> Catalog:
    return write_catalog(str(source), tmp_path / "catalog.parquet")


def test_a_folder_becomes_a_catalogue(tmp_path: Path) -> None:
    folder = tmp_path / "songs"
    for name in ("x/a.wav", "x/a.mp3", "y/a.wav", "readme.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"123")
    catalog = catalog_of(tmp_path, folder)
    assert (catalog.songs, catalog.size, catalog.ignored) == (3, 9, 1)
    songs = list(catalog)
    assert [item.folder for item in songs] == ["x", "x", "y"]
    assert len({(item.folder, item.track) for item in songs}) == 3
    assert songs[2].track == "a"
    assert all(item.track.startswith("a-") for item in songs[:2])
    assert all(item.version for item in songs)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_manifests_carry_further_columns(tmp_path: Path, kind: str) -> None:
    songs = [
        {"path": "x/a.wav", "year": 1999},
        {"path": "s3://bucket/b.wav", "year": 2001},
        {"path": "x/a.wav", "year": 1},
    ]
    table = pa.Table.from_pylist(songs)
    path = tmp_path / f"songs.{kind}"
    if kind == "csv":
        pa.csv.write_csv(table, path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, songs)))
    else:
        pa.parquet.write_table(table, path)
    catalog = catalog_of(tmp_path, path)
    found = list(catalog)
    assert catalog.songs == len(found) == 2  # one is listed twice
    assert [item.source for item in found] == [f"{tmp_path}/x/a.wav", "s3://bucket/b.wav"]
    assert [(item.folder, item.track) for item in found] == [("x", "a"), ("bucket", "b")]
    assert [item.columns for item in found] == [{"year": 1999}, {"year": 2001}]
    assert catalog.columns.names == ["year"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.wav\n", "no column named path, only file"),
        ("path\n", "no songs"),
        ("path,x\n,1\n", "row 1 has no path"),
        ("path,size\na.wav,1\n", "column size has a name"),
        ("", "cannot be read"),
    ],
)
def test_bad_manifests_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "songs.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        catalog_of(tmp_path, tmp_path / "songs.csv")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    with pytest.raises(InputError, match="no songs in"):
        catalog_of(tmp_path, tmp_path / "songs")


def row(source: str, state: str = "done", *, version: str = "", work: str = "w") -> dict[str, Any]:
    return {"source": source, "state": state, "version": version, "work": work}


def test_rows_know_which_songs_are_done(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with rows.RowWriter(store, pa.schema([("year", pa.int64())])) as writer:
        writer.add({**row("a", version="1"), "year": 1999})
        writer.add(row("b", "failed"))
        writer.add(row("c", work="other"))
    done = rows.finished_keys(store, "w")
    asked = [("a", "1"), ("a", ""), ("a", "2"), ("b", ""), ("c", "")]
    assert [is_in(rows.done_key(*each), done) for each in asked] == [True, True, False, False, False]


def test_only_the_last_row_of_a_song_stays(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for states in ({"a": "failed", "b": "done", "c": "failed"}, {"a": "done"}, {"c": "done"}):
        with rows.RowWriter(store, pa.schema([])) as writer:
            for source, state in states.items():
                writer.add(row(source, state))
    rows.compact(store)
    table = pa.parquet.read_table(tmp_path / "rows")
    assert sorted(zip(table["source"].to_pylist(), table["state"].to_pylist(), strict=True)) == [
        ("a", "done"), ("b", "done"), ("c", "done"),
    ]  # fmt: skip
    rows.compact(store)
    assert pa.parquet.read_table(tmp_path / "rows").num_rows == 3


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "1.parquet").write_bytes(b"no")
    with pytest.raises(OutputError, match=r"rows/1\.parquet is damaged"):
        rows.finished_keys(Store(str(tmp_path)), "w")


def test_the_display_fits_into_80_columns() -> None:
    summary = Summary(1_000_000, skipped=123_456, done=7_890, seconds=2e6, cpu_seconds=4e6, workers=64)
    summary.failed.update(InputError=12, WorkerDied=3)
    summary.began -= 36_000
    first, second = batch._describe(summary)
    assert max(len(first), len(second)) < 80
    assert first.startswith("131,361 of 1,000,000 songs, 0.93 hours of music per minute, ")
    assert second == "64 workers, 1,111.11 CPU hours, failed: 12 InputError, 3 WorkerDied"
    summary.workers = 1
    assert batch._describe(summary)[1].startswith("1 worker, ")
    summary.interrupted = True
    assert "Ctrl-C again" in batch._describe(summary)[1]


def test_the_estimate_tells_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    found = Estimate(
        songs=10, done=0, sampled=2, hours=1.0, bytes_to_read=1.0, bytes_to_write=1.0, cpu_hours=8.0
    )
    batch._print_estimate(found, Cluster(workers=(1, 4), cpus=2), as_json=False)
    assert "time         1:00:00 with 4 workers" in capsys.readouterr().out


def test_cpu_time_of_overlapping_songs_is_counted_once(uploaded: str) -> None:
    worker = SongWorker(job("memory://out"))
    began = time.process_time()
    worker.separate(song(uploaded))  # with what came before
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(worker.separate, [song(uploaded, folder=name) for name in ("a", "b")]))
    assert 0 <= sum(row["cpu"] for row in found) <= time.process_time() - began
