"""Downloads from a server on this machine: only the right bytes are kept, and they are asked for once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from model_server import BODY, COMMIT, REDIRECTS, SHA256, ModelServer

from tfswa_sep.errors import ModelError, OutputError
from tfswa_sep.registry import ModelFile, download

PRIVATE = sorted(set(REDIRECTS) - {"away.onnx", "home.onnx"})


def file_at(where: str, *, sha256: str = SHA256, size: int = len(BODY)) -> ModelFile:
    return ModelFile("onnx", where, sha256, size)


def kept(folder: Path) -> set[str]:
    """Files in the cache but the locks', as folder/ or name."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {f"{path.parts[0]}/" if len(path.parts) > 1 else path.name for path in files} - {".locks/"}


def test_a_download_is_kept_and_not_asked_for_again(server: ModelServer, tmp_path: Path) -> None:
    file = file_at(f"{server.url}/tiny.onnx")
    path = download.fetch(file)
    assert path.read_bytes() == BODY
    assert download.fetch(file) == path
    assert server.asked == ["GET /tiny.onnx"]
    path.write_bytes(BODY[:-3])  # the disk was full, or somebody wrote into it
    assert download.fetch(file).read_bytes() == BODY
    assert kept(tmp_path / "cache") == {path.name, "quarantine/"}


@pytest.mark.parametrize(
    ("name", "gets"),
    [("cut.onnx", 2), ("restart.onnx", 2), ("once.onnx", 2), ("silent.onnx", 2), ("home.onnx", 1)],
)
def test_a_download_recovers_from_one_failure(server: ModelServer, name: str, gets: int) -> None:
    """Cut off and resumed, or by one that cannot resume; wrong once; no answer once; redirected there."""
    assert download.fetch(file_at(f"{server.url}/{name}")).read_bytes() == BODY
    assert server.gets[name] == gets


def test_a_server_that_stalls_is_asked_again(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    assert download.fetch(file_at(f"{server.url}/stall.onnx")).read_bytes() == BODY
    assert server.gets["stall.onnx"] == 2


@pytest.mark.parametrize(
    ("name", "message", "left"),
    [
        ("wrong.onnx", "has SHA-256 .*, twice; the rejected file was moved, unopened, to", {"quarantine/"}),
        ("severed.onnx", "cut off at 640001 bytes .*: run again to resume", {"parts/"}),
        ("long.onnx", "larger than the expected 1280002 bytes", set()),
        ("gone.onnx", "the server replied 404", set()),
        ("away.onnx", "redirected to http://example.org/tiny.onnx, which is not https", set()),
        *((name, "redirected to .*, a private address", set()) for name in PRIVATE),
    ],
)
def test_a_bad_download_is_reported(
    server: ModelServer, tmp_path: Path, name: str, message: str, left: set[str]
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        download.fetch(file_at(f"{server.url}/{name}"))
    assert "\n" not in str(caught.value)
    assert kept(tmp_path / "cache") == left


def test_a_later_run_resumes_a_download(server: ModelServer, tmp_path: Path) -> None:
    file = file_at(f"{server.url}/tiny.onnx")
    part = download._part(file)
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:1_000_000])
    assert download.fetch(file).read_bytes() == BODY
    # Two halves that do not belong together are found out, and fetched again from the start.
    part.write_bytes(b"other" * 1000)
    download.cached_path(file).unlink()
    assert download.fetch(file).read_bytes() == BODY
    assert kept(tmp_path / "cache") == {download.cached_path(file).name, "quarantine/"}


def test_two_cold_starts_download_once(server: ModelServer) -> None:
    file = file_at(f"{server.url}/slow.onnx")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(download.fetch, [file] * 4))
    assert [path.read_bytes() == BODY for path in paths] == [True]
    assert server.asked == ["GET /slow.onnx"]


def test_offline_nothing_is_asked(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    here = file_at(f"{server.url}/tiny.onnx")
    download.fetch(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download.fetch(here).read_bytes() == BODY
    for where in (f"{server.url}/other.onnx", f"hf://org/repo@{COMMIT}/tiny.onnx"):
        with pytest.raises(ModelError, match="not in the cache and offline mode is on"):
            download.fetch(file_at(where))
    assert server.asked == ["GET /tiny.onnx"]


def test_no_network_is_reported_at_once(server: ModelServer) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"cannot download http://127.0.0.1:1/tiny.onnx: .*online\?\)$"):
        download.fetch(file_at("http://127.0.0.1:1/tiny.onnx"))
    assert time.monotonic() - began < 20  # far below the patience that a download under way has


def test_a_cache_that_cannot_be_written_names_the_way_out(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TFSWA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="set TFSWA_CACHE"):
        download.fetch(file_at(f"{server.url}/tiny.onnx"))


def test_other_users_of_the_process_are_unaffected(server: ModelServer) -> None:
    """The checks sit in huggingface_hub's own web client, and are off where the request is not ours."""
    from huggingface_hub import get_session

    download.fetch(file_at(f"{server.url}/tiny.onnx"))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(get_session().get(f"{server.url}/tiny.onnx")))
    thread.start()
    thread.join()
    assert answers[0].content == BODY


HUB_SCRIPT = """
import sys
from tfswa_sep.errors import TfswaError
from tfswa_sep.registry import ModelFile, download
commit, sha256, size, *names = sys.argv[1:]
for name in names:
    try:
        file = ModelFile("onnx", f"hf://org/repo@{commit}/{name}", sha256, int(size))
        path = download.fetch(file)
        print("ok", path.stat().st_size, path == download.cached_path(file))
    except TfswaError as error:
        print(type(error).__name__, error)
"""


def ask_hub(server: ModelServer, *names: str, endpoint: str = "") -> list[str]:
    """What the real client of Hugging Face makes of our hub; it reads HF_ENDPOINT when it is imported."""
    environment = {"HF_ENDPOINT": endpoint or server.url, "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, COMMIT, SHA256, str(len(BODY)), *names],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_real_hugging_face_client(server: ModelServer, tmp_path: Path) -> None:
    names = ["tiny.onnx", "once.onnx", "wrong.onnx", "gone.onnx", "long.onnx", "metadata.onnx", "away.onnx"]
    good, mended, wrong, gone, long, private, away = ask_hub(server, *names)
    assert good == mended == f"ok {len(BODY)} True"
    assert wrong.startswith(f"ModelError hf://org/repo@{COMMIT}/wrong.onnx has SHA-256")
    assert gone.startswith(f"ModelError cannot download hf://org/repo@{COMMIT}/gone.onnx: ")
    assert "is larger than the expected 1280002 bytes" in long
    assert "redirected to 169.254.169.254, a private address" in private
    assert "redirected to http://example.org/tiny.onnx, which is not https" in away
    files = [request for request in server.asked if "/resolve/" in request]
    assert files and all(COMMIT in request for request in files)  # never a branch, which could move
    # Offline now: what was whole is still there, what was put aside cannot be got.
    kept, missing = ask_hub(server, "tiny.onnx", "wrong.onnx", endpoint="http://127.0.0.1:1")
    assert kept == f"ok {len(BODY)} True"
    assert missing.startswith("ModelError cannot download")


@pytest.mark.slow
def test_the_real_client_resumes_waits_its_turn_and_sees_damage(server: ModelServer, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: ask_hub(server, "slow.onnx"), range(2)))
    assert both == [[f"ok {len(BODY)} True"]] * 2
    assert server.gets["slow.onnx"] == 1
    assert ask_hub(server, "cut.onnx", "stall.onnx") == [f"ok {len(BODY)} True"] * 2
    file = file_at(f"hf://org/repo@{COMMIT}/slow.onnx")
    download.cached_path(file).resolve().write_bytes(BODY[::-1])
    assert ask_hub(server, "slow.onnx") == [f"ok {len(BODY)} True"]
    assert server.gets["slow.onnx"] == 2
