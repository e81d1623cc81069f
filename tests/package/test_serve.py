"""The server: songs in, stems out; jobs that survive whatever happens; and requests that must not work."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import write_song
from serve_process import Server
from waiting import wait_for

pytest.importorskip("fastapi")
import filelock
from starlette.testclient import TestClient

from tfswa_sep.cli import main
from tfswa_sep.errors import UsageError
from tfswa_sep.options import Runtime, ServeOptions
from tfswa_sep.server import delivery
from tfswa_sep.server.app import create_app
from tfswa_sep.server.jobs import FullError, Jobs, QuotaError, clean_name
from tfswa_sep.server.store import Job, Store

MB = 1e-6  # of a limit in MB, one byte
TOKEN = "correct horse battery"
OURS = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for songs of up to three seconds."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    server = Server(tmp_path_factory.mktemp("shared"), "--max-minutes", "0.05")
    yield server
    server.end(signal.SIGINT)
    assert server.process.returncode == 130


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_songs_in_and_stems_out(shared: Server, tmp_path: Path) -> None:
    server = shared
    song = write_song(tmp_path / "Für <b>Elise & Co.wav", seconds=1.5)
    mono = write_song(tmp_path / "mono.wav", seconds=0.7, rate=22_050, channels=1)
    added = server.add(song, mono)["jobs"]
    assert [job["name"] for job in added] == [song.name, mono.name]
    job = server.wait(added[0]["id"], "done", "failed")
    assert (job["state"], job["stems"], job["error"]) == ("done", ["vocals", "drums", "bass", "other"], None)
    assert (job["frames"], job["sample_rate"], job["channels"]) == (66_150, 44_100, 2)
    at = f"/v1/jobs/{job['id']}"

    # Its stems are those of the command.
    assert main.run([str(song), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    stems = {}
    for stem in job["stems"]:
        stems[stem], _ = soundfile.read(io.BytesIO(server.curl(f"{at}/stems/{stem}")), dtype="float32")
        expected, _ = soundfile.read(tmp_path / "out" / song.stem / f"{stem}.wav", dtype="float32")
        np.testing.assert_array_equal(stems[stem], expected)

    # In pieces, as the player fetches them.
    samples = stems["bass"].tobytes()
    assert server.curl(f"{at}/pcm/bass") == samples
    assert server.curl(f"{at}/pcm/bass", "--header", "Range: bytes=800-1599") == samples[800:1600]
    answer = server.curl(f"{at}/pcm/bass", "--include", "--header", f"Range: bytes={len(samples)}-").decode()
    assert " 416 " in answer and f"bytes */{len(samples)}" in answer
    waveform = np.frombuffer(server.curl(f"{at}/peaks/bass"), np.uint8).reshape(-1, 2)
    buckets = np.pad(stems["bass"], ((0, -len(stems["bass"]) % 1024), (0, 0))).reshape(-1, 2048)
    np.testing.assert_array_equal(waveform[:, 0], np.rint(np.abs(buckets).max(1) * 255))
    assert len(server.curl(f"{at}/peaks/bass?first=60")) == 2 * (len(waveform) - 60)

    # In other formats, mixed and zipped.
    mixed = soundfile.read(io.BytesIO(server.curl(f"{at}/mix?gains=vocals:0.5,drums:1")), dtype="float32")[0]
    np.testing.assert_array_equal(mixed, stems["vocals"] * np.float32(0.5) + stems["drums"])
    for container in ("flac", "mp3", "ogg", "opus"):
        content = server.curl(f"{at}/stems/vocals?format={container}")
        sound, rate = soundfile.read(io.BytesIO(content), dtype="float32")
        assert len(sound) == pytest.approx(1.5 * rate, abs=1)
        assert (
            server.curl(f"{at}/stems/vocals?format={container}", "--header", "Range: bytes=0-9")
            == content[:10]
        )
    with zipfile.ZipFile(io.BytesIO(server.curl(f"{at}/stems.zip?format=flac"))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{song.stem}/{stem}.flac" for stem in job["stems"]]
    header = server.curl(f"{at}/stems/vocals?format=mp3", "--head", "--request", "GET").decode()
    assert "filename*=utf-8''F%C3%BCr%20%3Cb%3EElise%20%26%20Co%20-%20vocals.mp3" in header

    # Nothing says where they are, and nothing is left.
    assert str(tmp_path) not in json.dumps(server.get("/v1/jobs"))
    other = server.wait(added[1]["id"], "done")
    assert (other["frames"], other["sample_rate"], other["channels"]) == (15_435, 22_050, 1)
    for each in (job, other):
        server.curl(f"/v1/jobs/{each['id']}", "--request", "DELETE")
    assert server.get("/v1/jobs") == {"jobs": []}
    assert not [name for name in files_below(server.data) if name.startswith(("songs", "uploads"))]


@pytest.mark.longest
@pytest.mark.slow
def test_whatever_dies_no_song_is_lost(serve: Callable[..., Server], tmp_path: Path) -> None:
    long = write_song(tmp_path / "long.wav", seconds=150)
    server = serve()
    job_id = server.add(long, stems="vocals")["id"]
    # While it runs, its stems grow.
    job = wait_for(lambda: (job := server.get(f"/v1/jobs/{job_id}"))["playable"] > 1 and job)
    assert job["stems"] == ["vocals"] and job["state"] == "running" and 0 < job["progress"] < 1
    heard = server.curl(f"/v1/jobs/{job_id}/pcm/vocals", "--header", "Range: bytes=0-79999")
    assert len(heard) == 80_000
    assert len(server.curl(f"/v1/jobs/{job_id}/peaks/vocals")) >= 80

    # The worker dies: the song fails, the server goes on.
    os.kill(worker_of(server), signal.SIGKILL)
    job = server.wait(job_id, "failed")
    assert job["error"] == {"kind": "Crash", "message": "long.wav: its worker process was killed by signal 9"}
    assert files_below(server.data / "songs") == [f"{job_id}/song.wav"]
    assert server.curl(f"/v1/jobs/{job_id}/pcm/vocals", "--write-out", "%{http_code}").endswith(b"404")

    # Tried again, and cancelled.
    server.curl(f"/v1/jobs/{job_id}/retry", "--request", "POST")
    wait_for(lambda: server.get(f"/v1/jobs/{job_id}")["progress"] > 0)
    assert json.loads(server.curl(f"/v1/jobs/{job_id}/cancel", "--request", "POST"))["state"] == "cancelled"
    wait_for(lambda: files_below(server.data / "songs") == [f"{job_id}/song.wav"])

    # The server dies: the next one resumes the song, and removes what belongs to nothing.
    wait_for(lambda: b'"queued"' in server.curl(f"/v1/jobs/{job_id}/retry", "--request", "POST"))
    wait_for(lambda: server.get(f"/v1/jobs/{job_id}")["progress"] > 0)
    worker = worker_of(server)
    server.end(signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{worker}").exists())
    (server.data / "songs" / "orphan").mkdir()
    (server.data / "uploads" / "half").write_text("x")
    server = serve()
    assert server.get(f"/v1/jobs/{job_id}")["state"] in ("queued", "running")
    assert not {"orphan", "half"} & {path.name for path in server.data.rglob("*")}
    wait_for(lambda: server.get(f"/v1/jobs/{job_id}")["progress"] > 0)
    server.curl(f"/v1/jobs/{job_id}", "--request", "DELETE")
    wait_for(lambda: not files_below(server.data / "songs"))


def test_a_song_that_ran_at_two_crashes_is_given_up(tmp_path: Path) -> None:
    for attempts, state in ((1, "queued"), (2, "failed")):
        data = tmp_path / state
        (data / "songs" / "a").mkdir(parents=True)
        (data / "songs" / "a" / "song.wav").write_text("x")
        (data / "songs" / "a" / "vocals.wav").write_text("half")
        store = Store(data / "jobs.sqlite")
        then = time.time()
        store.save(
            Job(
                id="a",
                name="a.wav",
                suffix=".wav",
                state="running",
                created=then,
                started=then,
                attempts=attempts,
            )
        )
        store.close()
        jobs = Jobs(data, ServeOptions(), Runtime())
        job = jobs.get("a")
        assert job and job.state == state and bool(job.error) == (state == "failed")
        assert files_below(data / "songs") == ["a/song.wav"]
        jobs._store.close()


def test_one_server_uses_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with filelock.FileLock(tmp_path / "lock"):
        assert main.run(["serve", "--port", "0", "--data", str(tmp_path), "--no-browser"]) == 5
    assert "another server uses" in capsys.readouterr().err


def worker_of(server: Server) -> int:
    """The process id of a server's only worker."""
    listed = subprocess.run(
        ["ps", "-ww", "--ppid", str(server.process.pid), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return next(int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line)


# Limits


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """client(max_queue=1, ...): a server in this process that never begins to separate."""
    opened: list[TestClient] = []

    def start(**options: Any) -> TestClient:
        app = create_app(tmp_path / "data", ServeOptions(**options), Runtime())
        app.state.jobs._run_slot = lambda: None
        opened.append(TestClient(app, base_url=OURS, raise_server_exceptions=False))
        return opened[-1].__enter__()

    yield start
    for each in opened:
        each.__exit__(None, None, None)


def song(name: str = "song.wav", content: bytes = b"x") -> Any:
    return [("file", (name, content))]


def kind(answer: Any) -> tuple[int, str]:
    """Status code and kind of error; every error has the same form, and a message."""
    error = answer.json()["error"]
    assert set(error) == {"kind", "message"} and error["message"]
    return answer.status_code, error["kind"]


def left(client: TestClient) -> list[str]:
    root: Path = client.app.state.jobs.root  # type: ignore[attr-defined]
    return [name for name in files_below(root) if name.startswith(("songs", "uploads"))]


def test_songs_that_are_too_large(client: Callable[..., TestClient]) -> None:
    server = client(max_size=1000 * MB, max_queue=2, quota=3000e-9)
    assert kind(server.post("/v1/jobs", files=song(content=bytes(1001)))) == (413, "Upload")
    announced = {"content-length": "1000000", "content-type": "multipart/form-data; boundary=x"}
    unread = server.post("/v1/jobs", headers=announced, content=iter([]))  # refused before it is read
    assert kind(unread) == (413, "Upload")
    assert kind(server.post("/v1/jobs", files=song(), data={"stems": "x" * 1001})) == (413, "Upload")
    assert server.post("/v1/jobs", files=song(content=bytes(1000))).status_code == 201
    assert kind(server.post("/v1/jobs", files=2 * song())) == (503, "Full")
    assert server.post("/v1/jobs", files=song(content=bytes(1000))).status_code == 201
    full = server.post("/v1/jobs", files=song())
    assert kind(full) == (503, "Full") and full.headers["retry-after"] == "10"
    assert len(left(server)) == 2


def test_a_full_disk_quota(client: Callable[..., TestClient]) -> None:
    server = client(quota=1500e-9)
    first = server.post("/v1/jobs", files=song(content=bytes(1000))).json()
    assert kind(server.post("/v1/jobs", files=song(content=bytes(1000)))) == (507, "Quota")
    streamed = iter([b"--x\r\ncontent-disposition: form-data; name=file; filename=a\r\n\r\n", bytes(1000)])
    headers = {"content-type": "multipart/form-data; boundary=x"}  # and no content-length
    assert kind(server.post("/v1/jobs", headers=headers, content=streamed)) == (507, "Quota")
    assert server.delete(f"/v1/jobs/{first['id']}").status_code == 204
    assert server.post("/v1/jobs", files=song(content=bytes(1000))).status_code == 201
    assert len(left(server)) == 1


def test_broken_uploads_leave_nothing(client: Callable[..., TestClient]) -> None:
    server = client()
    head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nsound'
    for body, status in (
        (head, 400),  # cut off
        (head + b"\r\n--x--", 201),
        (b"nonsense", 400),
        (b"", 400),
        (head.replace(b'"file"', b'"else"') + b"\r\n--x--", 400),
        (b"--x\r\n" + b"a: b\r\n" * 1000 + head[5:] + b"\r\n--x--", 400),  # too many headers
        (b"--x\r\na: " + bytes(100_000) + b"\r\n" + head[5:] + b"\r\n--x--", 400),
        (
            b"".join(b'--x\r\ncontent-disposition: form-data; name="%d"\r\n\r\n1\r\n' % n for n in range(99)),
            400,
        ),
    ):
        answer = server.post(
            "/v1/jobs", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code == status, body[:100]
    assert kind(server.post("/v1/jobs", content=b"x", headers={"content-type": "audio/wav"})) == (
        415,
        "Upload",
    )
    assert kind(server.post("/v1/jobs", files=song(), data={"stems": "violin"})) == (400, "UsageError")
    assert kind(server.post("/v1/jobs", files=song(), data={"model": "/etc/passwd"})) == (400, "UsageError")
    assert len(left(server)) == 1


def test_a_client_that_stops_or_dawdles(
    client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = client()
    head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(20):
            time.sleep(0.01)
            yield b"x"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    monkeypatch.setattr("tfswa_sep.server.uploads._PAUSE", 0.05)
    slow = server.post("/v1/jobs", content=body(), headers=headers)
    assert kind(slow) == (408, "Upload")
    assert not left(server)


def test_songs_and_stems_expire(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Jobs(data, ServeOptions(), Runtime())._store.close()
    store = Store(data / "jobs.sqlite")
    day = 86_400
    for job_id, state, age in (("old", "done", 31), ("young", "done", 29), ("waiting", "queued", 99)):
        then = time.time() - age * day
        store.save(Job(id=job_id, name="a.wav", state=state, created=then, finished=then))  # type: ignore[arg-type]
        (data / "songs" / job_id).mkdir()
        (data / "songs" / job_id / "vocals.wav").write_text("x")
    store.close()
    jobs = Jobs(data, ServeOptions(keep=30), Runtime())
    assert {job.id for job in jobs.all()} == {"young", "waiting"}
    assert {path.name for path in (data / "songs").iterdir()} == {"young", "waiting"}
    jobs._store.close()


def test_jobs_of_another_version_can_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    store.save(Job(id="a", name="a.wav", created=1.0, stems=("vocals",)))
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        database.execute("UPDATE jobs SET document = json_set(document, '$.new', 1)")
    database.close()
    assert store.load() == [Job(id="a", name="a.wav", created=1.0, stems=("vocals",))]
    store.close()


def test_reserved_room_counts(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, ServeOptions(max_queue=2, quota=100e-9), Runtime())
    with jobs.reserve(60) as first:
        with pytest.raises(QuotaError), jobs.reserve(60):
            pass
        with jobs.reserve(10), pytest.raises(FullError), jobs.reserve(10):
            pass
        with pytest.raises(FullError):
            jobs.grow(first, songs=3, size=60)
    with jobs.reserve(60):  # all of it is free again
        pass
    jobs._store.close()


# Safety


def test_another_site_cannot_use_the_server(client: Callable[..., TestClient]) -> None:
    server = client()
    for headers, status in (
        ({}, 201),  # curl
        ({"origin": OURS}, 201),
        ({"origin": OURS, "sec-fetch-site": "same-origin"}, 201),
        ({"host": "localhost:8765", "origin": "http://localhost:8765"}, 201),
        ({"host": "[::1]:8765"}, 201),
        # CSRF
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),  # another program on this machine
        ({"origin": OURS + ".evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8765@evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        # DNS rebinding
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8765", "origin": "http://evil.example:8765"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1@evil.example"}, 403),
        ({"host": "192.168.0.7"}, 403),
        ({"host": ""}, 403),
        ({"host": "[::1"}, 403),
    ):
        assert server.post("/v1/jobs", files=song(), headers=headers).status_code == status, headers
    evil = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert server.get("/v1/jobs", headers=evil).status_code == 403  # as <audio src> or <script src>
    assert (
        server.get(
            "/docs", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        ).status_code
        == 200
    )
    for method in ("DELETE", "PUT", "PATCH"):
        assert (
            server.request(method, "/v1/jobs/x", headers={"origin": "https://evil.example"}).status_code
            == 403
        )


def test_headers_against_hostile_content(client: Callable[..., TestClient]) -> None:
    server = client()
    for path in ("/docs", "/v1/jobs", "/v1/nothing", "/style.css"):
        headers = server.get(path).headers
        policy = headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy and "unsafe-inline" not in policy and "'unsafe-eval'" not in policy
        )
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers
    assert server.get("/v1/jobs").headers["cache-control"] == "no-store"


def test_the_token(client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfswa_sep.server.security.WRONG_TOKEN_SECONDS", 0)
    server = client(host="0.0.0.0", token=TOKEN, allow_hosts=["stems.example"])
    refused: tuple[Any, ...] = (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer ünïcode".encode()},
        {"authorization": f"Basic {TOKEN}"},
        {"cookie": f"tfswa-sep={TOKEN}"},
        {"cookie": "tfswa-sep=0; $Path"},
    )
    for headers in refused:
        assert kind(server.get("/v1/jobs", headers=headers)) == (401, "Token"), headers
        assert kind(server.post("/v1/jobs", files=song(), headers=headers)) == (401, "Token")
    assert server.get("/v1/jobs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    right = {"authorization": f"Bearer {TOKEN}"}
    assert server.get("/v1/jobs", headers={"host": "stems.example", **right}).status_code == 200
    assert server.get("/v1/jobs", headers={"host": "evil.example", **right}).status_code == 403
    assert server.get("/health").json() == {"status": "ok"}
    for path in ("/openapi.json", "/docs", "/app.js"):
        assert server.get(path).status_code == 401

    # The page asks for it.
    page = server.get("/")
    assert page.status_code == 401 and "<form" in page.text
    wrong = server.post("/login", data={"token": "wrong"}, follow_redirects=False)
    assert wrong.headers["location"] == "/#wrong" and "set-cookie" not in wrong.headers
    answer = server.post("/login", data={"token": TOKEN}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert server.get("/v1/jobs").status_code == 200  # with the cookie
    assert server.post("/login", content=b"x" * 20_000).status_code == 413


def test_a_reachable_server_needs_a_token_or_a_clear_word(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(UsageError, match="--token"):
            ServeOptions(host=host)
        assert ServeOptions(host=host, no_auth=True).no_auth
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert ServeOptions(host=host).is_local
    with pytest.raises(UsageError, match="at least 16 characters"):
        ServeOptions(token="short")
    with pytest.raises(UsageError, match="max-size must be above 0"):
        ServeOptions(max_size=0)
    assert main.run(["serve", "--host", "0.0.0.0"]) == 2
    assert "--no-auth" in capsys.readouterr().err


def test_a_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main.run(["serve", "--port", port, "--data", str(tmp_path), "--no-browser"]) == 5
    assert f"port {port}" in capsys.readouterr().err


def test_only_songs_below_the_allowed_folder(client: Callable[..., TestClient], tmp_path: Path) -> None:
    (tmp_path / "songs" / "album").mkdir(parents=True)
    (tmp_path / "songs" / "album" / "a.wav").write_text("x")
    (tmp_path / "secret.wav").write_text("x")
    (tmp_path / "songs" / "link.wav").symlink_to(tmp_path / "secret.wav")
    os.mkfifo(tmp_path / "songs" / "pipe.wav")
    server = client()
    assert kind(server.post("/v1/jobs", json={"path": "album/a.wav"})) == (403, "HTTP")
    server = client(allow_path=tmp_path / "songs", data=tmp_path / "data2")
    for path in (
        "../secret.wav", "album/../../secret.wav", str(tmp_path / "secret.wav"), "link.wav", "pipe.wav", "album", "",
        ".", "missing.wav", "a\0b", "x" * 5000, "/dev/stdin", "/proc/self/environ",
    ):  # fmt: skip
        answer = server.post("/v1/jobs", json={"path": path})
        assert kind(answer) == (404, "InputError") and str(tmp_path) not in answer.text
    job = server.post("/v1/jobs", json={"path": "album/a.wav", "stems": "vocals"}).json()
    assert job["name"] == "a.wav" and str(tmp_path) not in json.dumps(job)
    server.delete(f"/v1/jobs/{job['id']}")
    assert (tmp_path / "songs" / "album" / "a.wav").exists()  # only our own copy would be removed
    for body in (b"", b"[]", b"{", b"1", b'{"path"}', b"[" * 5000):
        answer = server.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert kind(answer) == (400, "UsageError")


def test_hostile_names(client: Callable[..., TestClient]) -> None:
    for name, cleaned in (
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\system.ini", "system.ini"),
        ("a\r\nSet-Cookie: x=1.wav", "aSet-Cookie: x=1.wav"),
        ("\u202egpj.wav", "gpj.wav"),  # would be displayed backwards
        ("<script>alert(1)</script>.wav", "script>.wav"),
        ("\0", "song"),
        ("", "song"),
        ("..", ".."),
        ("x" * 5000 + ".wav", "x" * 150 + ".wav"),
    ):
        assert clean_name(name) == cleaned
    server = client()
    for name in (
        "../../evil.wav",
        "a/../../b.wav",
        "x.wav/../../y",
        "-rf.wav",
        "%2e%2e%2fz.wav",
        "CON.wav",
        "é" * 300,
    ):
        assert server.post("/v1/jobs", files=song(name)).status_code == 201
    jobs = server.app.state.jobs  # type: ignore[attr-defined]
    for found in left(server):  # each in its own folder, under a name of ours
        folder, job_id, file = found.split("/")
        assert folder == "songs" and jobs.get(job_id) and file in ("song.wav", "song")


def test_paths_in_addresses_lead_nowhere(client: Callable[..., TestClient]) -> None:
    server = client()
    job = server.post("/v1/jobs", files=song()).json()["id"]
    for path in (
        "/../pyproject.toml", "/%2e%2e/app.py", "/..%2fapp.py", "/vendor/../../app.py", "//etc/passwd",
        f"/v1/jobs/{job}/stems/..%2fsong", f"/v1/jobs/{job}/pcm/..%2f..%2fjobs.sqlite", f"/v1/jobs/{job}/peaks/song",
        "/v1/jobs/..", f"/v1/jobs/{job}%00", "/v1/jobs/*", f"/v1/jobs/{job}/stems/vocals?format=../x",
        f"/v1/jobs/{job}/stems/vocals?format=exe", f"/v1/jobs/{job}/mix?gains=vocals:nan",
    ):  # fmt: skip
        assert server.get(path).status_code in (400, 404, 409), path


def test_playlists_cannot_make_the_server_open_other_files(shared: Server, tmp_path: Path) -> None:
    server = shared
    secret = write_song(tmp_path / "secret.wav", seconds=0.3)
    hostile = {
        "a.m3u8": f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "b.ffconcat": f"ffconcat version 1.0\nfile {secret}\n",
        "c.sdp": "v=0\nm=audio 9 RTP/AVP 0\nc=IN IP4 127.0.0.1\n",
        "d.mp3": "",
        "e.wav": "RIFF\xff\xff\xff\x7fWAVEdata\xff\xff\xff\x7f",
        "f.xspf": f'<playlist xmlns="http://xspf.org/ns/0/"><trackList><track><location>{secret}</location></track></trackList></playlist>',
    }
    for name, text in hostile.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    long = write_song(tmp_path / "long.wav", seconds=4, rate=8_000)
    added = server.add(*(tmp_path / name for name in hostile), long)["jobs"]
    for job in added:
        job = server.wait(job["id"], "done", "failed")
        assert (job["state"], job["error"]["kind"]) == ("failed", "InputError"), job
        assert str(tmp_path) not in json.dumps(job) and job["error"]["message"].startswith(job["name"])
        assert [
            name for name in files_below(server.data / "songs" / job["id"]) if not name.startswith("song")
        ] == []
    assert "longer than 0.05 minutes" in job["error"]["message"]


def test_where_samples_begin() -> None:
    for subtype, container in (("FLOAT", "WAV"), ("FLOAT", "RF64")):
        written = io.BytesIO()
        soundfile.write(written, np.full((10, 2), 0.5, np.float32), 44_100, subtype, format=container)
        begin = delivery.find_samples(written)
        np.testing.assert_array_equal(np.frombuffer(written.getvalue()[begin : begin + 80], "<f4"), 0.5)
