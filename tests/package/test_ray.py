"""A library on several Ray nodes and an object store that fails: `make test-ray`.

RAY_SONGS (2000) songs of half a second and RAY_REAL (100) with the real model. Everything runs on this machine.
"""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import EvenBackend, write_song
from flaky_proxy import FlakyProxy, running_proxy

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")
import pyarrow.parquet
import s3fs
import soundfile
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster as LocalCluster

from tfswa_sep.cluster.catalog import Song, write_catalog
from tfswa_sep.cluster.run import Cluster, Summary, run_catalog
from tfswa_sep.cluster.store import Store
from tfswa_sep.cluster.worker import Job, SongWorker
from tfswa_sep.errors import DeviceError
from tfswa_sep.options import OutputOptions, Runtime
from tfswa_sep.registry import default_model

SONGS = int(os.environ.get("RAY_SONGS", "2000"))
REAL = int(os.environ.get("RAY_REAL", "100"))


def fake_worker(job: Job) -> SongWorker:
    """A worker whose network costs nothing."""
    from tfswa_sep import separator

    setattr(separator, "load_backend", lambda *args, **options: EvenBackend())  # noqa: B010
    return SongWorker(job)


class Idle:
    """A worker that does nothing at all."""

    def __init__(self, job: Job) -> None:
        pass

    def prepare(self) -> str:
        return ""

    def separate(self, song: Song) -> dict[str, Any]:
        if "poison" in song.source:
            os._exit(1)
        if "slow" in song.source:
            time.sleep(1000)
        return {"source": song.source, "state": "done", "seconds": 1.0, "took": 0.0}


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    os.environ.update(
        AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_DEFAULT_REGION="us-east-1", RAY_DEDUP_LOGS="0"
    )
    root = Path(__file__).parents[2]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(root), str(root / "tests"), str(root / "tests" / "package")]
    )


@pytest.fixture(scope="module")
def proxy() -> Iterator[FlakyProxy]:
    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    with running_proxy(port, rate=0.05) as running:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{running.server_port}"
        yield running
    server.stop()


@pytest.fixture
def bucket(proxy: FlakyProxy) -> s3fs.S3FileSystem:
    proxy.rate = 0.0
    files = s3fs.S3FileSystem(use_listings_cache=False)
    if not files.exists("music"):
        files.mkdir("music")
    return files


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    running = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield running
    ray.shutdown()
    running.shutdown()


def job(target: str) -> Job:
    return Job(
        target=target,
        model=default_model(),
        runtime=Runtime(threads=1, precision="int8"),
        options=OutputOptions(),
    )


def rows_of(target: str) -> list[dict[str, Any]]:
    store = Store(target)
    found: list[dict[str, Any]] = []
    for name in sorted(store.names_in("rows")):
        found += pyarrow.parquet.read_table(io.BytesIO(store.read(f"rows/{name}") or b"")).to_pylist()
    return found


def test_everything_goes_wrong(
    bucket: s3fs.S3FileSystem, proxy: FlakyProxy, cluster: LocalCluster, tmp_path: Path
) -> None:
    """A node dies at a third, workers are killed ten times, the driver once, and the store fails 5 % of requests."""
    for number in range(20):
        write_song(tmp_path / f"{number}.wav", seconds=0.5, seed=number)
    contents = [(tmp_path / f"{number}.wav").read_bytes() for number in range(20)]
    bucket.pipe(
        {f"music/in/{number % 40}/song{number}.wav": contents[number % 20] for number in range(SONGS)}
    )
    doomed = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    proxy.rate = 0.05
    program = [sys.executable, __file__, "s3://music/in", "s3://music/out", cluster.address]
    driver = subprocess.Popen(program)
    try:
        wait_until(lambda: done(bucket) > SONGS // 6, driver)
        driver.kill()
        driver.wait()
        driver = subprocess.Popen(program)
        wait_until(lambda: done(bucket) > SONGS // 3, driver)
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        killed = 0
        generator = random.Random(0)
        while killed < 10 and driver.poll() is None:
            time.sleep(generator.uniform(1, 3))
            if workers := pids_of("TfswaWorker.separate"):
                os.kill(generator.choice(workers), signal.SIGKILL)
                killed += 1
        code = driver.wait(3600)
    finally:
        driver.kill()
    proxy.rate = 0.0
    assert killed == 10
    assert proxy.faults.total() > 0
    rows = rows_of("s3://music/out")
    assert (code, [row for row in rows if row["state"] != "done"]) == (0, [])
    assert len(rows) == SONGS
    assert Counter(row["state"] for row in rows) == {"done": SONGS}
    assert len({row["source"] for row in rows}) == SONGS
    expected = plain_stems(tmp_path, contents)
    for row in rows:
        number = int(row["source"].rpartition("song")[2].removesuffix(".wav"))
        got = {
            name.rpartition("/")[2]: samples(bucket.cat_file(f"music/out/{name}")) for name in row["stems"]
        }
        assert got == expected[number % 20], row["source"]
    assert not bucket.call_s3("list_multipart_uploads", Bucket="music").get("Uploads")
    assert len(bucket.find("music/out")) == 5 * SONGS + len(bucket.ls("music/out/rows"))
    print(f"{SONGS} songs, faults of the store: {dict(proxy.faults)} in {proxy.requests} requests")


def plain_stems(tmp_path: Path, contents: list[bytes]) -> list[dict[str, bytes]]:
    """What one process makes of the songs."""
    from tfswa_sep import separator

    model = separator.Separator(EvenBackend())
    stems = []
    for number in range(len(contents)):
        result = model.separate_file(tmp_path / f"{number}.wav", out=tmp_path / "plain")
        stems.append({path.name: samples(path.read_bytes()) for path in result.files.values()})
    return stems


def samples(wav: bytes) -> bytes:
    """What a WAV file holds; its header has the time at which it was written."""
    content, _ = soundfile.read(io.BytesIO(wav), dtype="float32")
    return bytes(content.tobytes())


def wait_until(reached: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    while not reached():
        assert driver.poll() is None, "the driver has ended"
        time.sleep(5)  # listing the bucket is work for the server


def done(bucket: s3fs.S3FileSystem) -> int:
    """About how many songs are done."""
    return sum(path.endswith("/vocals.wav") for path in bucket.find("music/out"))


def pids_of(name: str) -> list[int]:
    """The processes that run an actor's method."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(f"ray::{name}".encode()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_the_real_model_gives_the_stems_of_a_plain_run(
    bucket: s3fs.S3FileSystem, proxy: FlakyProxy, tmp_path: Path
) -> None:
    songs = [f"{number:03}" for number in range(REAL)]
    for number, name in enumerate(songs):
        write_song(tmp_path / "in" / f"{name}.wav", seconds=0.5, seed=number)
    bucket.put(str(tmp_path / "in") + "/", "music/real/", recursive=True)
    proxy.rate = 0.05
    command = [sys.executable, "-m", "tfswa_sep"]
    options = ["--precision", "int8", "--quiet"]
    program = [*command, "batch", "s3://music/real", "--out", "s3://music/stems", "--workers", "2", *options]
    assert subprocess.run(program).returncode == 0
    proxy.rate = 0.0
    plain = subprocess.run(
        [*command, str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--threads", "1", *options]
    )
    assert plain.returncode == 0
    for name in songs:
        for stem in ("vocals", "drums", "bass", "other"):
            expected = samples((tmp_path / "out" / name / f"{stem}.wav").read_bytes())
            assert samples(bucket.cat_file(f"music/stems/{name}/{stem}.wav")) == expected
    assert subprocess.run(program).returncode == 0  # nothing is left to do
    assert len(rows_of("s3://music/stems")) == REAL


def test_a_song_that_kills_its_workers_is_set_aside(tmp_path: Path) -> None:
    names = [*(f"{n}.wav" for n in range(50)), "poison.wav", *(f"{n}.wav" for n in range(50, 100))]
    summary, rows = run_idle(tmp_path, names, Cluster(workers=(2, 2), cpus=0.5))
    assert (summary.done, dict(summary.failed)) == (100, {"WorkerDied": 1})
    assert summary.lost_workers == 3
    (failed,) = [row for row in rows if row["state"] == "failed"]
    assert failed["attempts"] == 3
    assert "poison.wav: its worker died 3 times" in failed["message"]


def test_a_song_that_takes_too_long_is_set_aside(tmp_path: Path) -> None:
    summary, rows = run_idle(tmp_path, ["a.wav", "slow.wav", "b.wav"], Cluster(workers=(1, 1), time_limit=5))
    assert summary.done == 2
    assert [row["error"] for row in rows if row["state"] == "failed"] == ["TimeLimit"]


def test_a_cluster_that_does_not_answer_is_reported_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "nonsense"):
        with pytest.raises(DeviceError, match=r"the Ray cluster .* cannot be reached"):
            run_idle(tmp_path, ["a.wav"], Cluster(address=address))


def test_a_signal_ends_the_wait_for_ray(tmp_path: Path) -> None:
    class Terminated(BaseException):
        pass

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 20)
        with pytest.raises(Terminated):
            run_idle(tmp_path, ["slow.wav"], Cluster(workers=(1, 1)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_million_songs_fit_into_memory(tmp_path: Path) -> None:
    """The manifest is planned, and a part of it handed out; prints the figures."""
    count = int(os.environ.get("RAY_PATHS", "1000000"))
    with (tmp_path / "songs.csv").open("w") as file:
        file.write("path\n")
        file.writelines(f"s3://bucket/{n % 1000}/song{n}.flac\n" for n in range(count))
    before = resident()
    began = time.monotonic()
    catalog = write_catalog(str(tmp_path / "songs.csv"), tmp_path / "catalog.parquet")
    assert catalog.songs == sum(1 for _ in catalog) == count
    print(f"planned {count:,} songs in {time.monotonic() - began:.1f} s with {resident() - before:.0f} MB")
    assert resident() - before < 400


def test_songs_are_handed_out_quickly(tmp_path: Path) -> None:
    count = int(os.environ.get("RAY_IDLE", "20000"))
    times: list[float] = []
    names = [f"{n}.wav" for n in range(count)]
    summary, _ = run_idle(
        tmp_path, names, Cluster(workers=(2, 2), cpus=0.5), on_row=lambda row: times.append(time.monotonic())
    )
    assert summary.done == count
    print(f"{(count - 1) / (times[-1] - times[0]):.0f} songs per second")


def run_idle(
    tmp_path: Path, names: list[str], cluster: Cluster, on_row: Callable[[dict[str, Any]], object] = id
) -> tuple[Summary, list[dict[str, Any]]]:
    (tmp_path / "songs.csv").write_text("\n".join(["path", *names]))
    catalog = write_catalog(str(tmp_path / "songs.csv"), tmp_path / "catalog.parquet")
    summary = run_catalog(catalog, job(str(tmp_path / "out")), cluster, worker=Idle, on_row=on_row)
    return summary, rows_of(str(tmp_path / "out"))


def resident() -> float:
    """This process's highest memory so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":  # the driver of the first test
    source, target, address = sys.argv[1:]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        listed = write_catalog(source, Path(folder) / "songs.parquet")
        failures: list[str] = []
        ended = run_catalog(
            listed,
            job(target),
            Cluster(address=address, workers=(1, 2)),
            worker=fake_worker,
            on_row=lambda row: failures.extend([row["message"]] if row["state"] == "failed" else []),
        )
    sys.exit("\n".join(failures) or 0)
