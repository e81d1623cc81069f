"""Downloads from a server on this machine: only the right bytes are kept, and they are requested once."""

from __future__ import annotations

import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants, try_to_load_from_cache
from model_server import BODY, COMMIT, REDIRECTS, SHA256, ModelServer, ask_this_hub

from tfswa_sep import registry
from tfswa_sep.errors import ModelError, OutputError
from tfswa_sep.registry import ModelFile, download

PRIVATE = sorted(set(REDIRECTS) - {"away.onnx", "home.onnx"})


def file_at(where: str, *, sha256: str = SHA256, size: int = len(BODY)) -> ModelFile:
    return ModelFile("onnx", where, sha256, size)


def kept(folder: Path) -> set[str]:
    """What the cache contains: "model", "partial", "quarantine"."""
    found = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_file() and ".locks" not in parts:
            kinds = {"parts": "partial", "blobs": "partial", "quarantine": "quarantine"}
            found |= {kinds[part] for part in parts if part in kinds} or {"model"}
    return found


def test_a_download_is_kept_and_not_asked_for_again(server: ModelServer, tmp_path: Path) -> None:
    file = file_at(f"{server.url}/tiny.onnx")
    path = download.fetch(file)
    assert path.read_bytes() == BODY
    assert download.fetch(file) == path
    assert server.asked == ["GET /tiny.onnx"]
    path.write_bytes(BODY[:-3])  # the disk was full, or somebody wrote into it
    assert download.fetch(file).read_bytes() == BODY
    assert kept(tmp_path / "cache") == {"model", "quarantine"}


@pytest.fixture(params=["web", "hub"])
def where(request: pytest.FixtureRequest, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a file: a web server's, or Hugging Face's, which describes and redirects."""
    if request.param == "web":
        return f"{server.url}/"
    ask_this_hub(server, monkeypatch)
    return f"hf://org/repo@{COMMIT}/"


@pytest.mark.parametrize(
    ("name", "gets"),
    [("cut.onnx", 2), ("restart.onnx", 2), ("once.onnx", 2), ("silent.onnx", 2), ("hiccup.onnx", 2)],
)
def test_a_download_recovers_from_one_failure(server: ModelServer, where: str, name: str, gets: int) -> None:
    """Cut off and resumed, or by one that cannot resume; wrong once; no answer once; broken once."""
    assert download.fetch(file_at(where + name)).read_bytes() == BODY
    assert server.gets[name] == gets


def test_a_redirection_to_the_same_server_is_followed(server: ModelServer) -> None:
    assert download.fetch(file_at(f"{server.url}/home.onnx")).read_bytes() == BODY


def test_a_server_that_stalls_is_asked_again(
    server: ModelServer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    assert download.fetch(file_at(f"{where}stall.onnx")).read_bytes() == BODY
    assert server.gets["stall.onnx"] >= 2  # more where the answer to the second came late


@pytest.mark.slow
def test_a_server_that_stalls_for_good_is_given_up(
    server: ModelServer, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    with pytest.raises(ModelError, match=r"cut off at 640001 bytes \(.*timed out.*\): run again to resume$"):
        download.fetch(file_at(f"{where}frozen.onnx"))
    assert kept(tmp_path / "cache") == {"partial"}


@pytest.mark.parametrize(
    ("name", "message", "left"),
    [
        ("wrong.onnx", "has SHA-256 .*, twice; the rejected file was moved, unopened, to", {"quarantine"}),
        ("severed.onnx", "cut off at 640001 bytes .*: run again to resume", {"partial"}),
        ("long.onnx", "larger than the expected 1280002 bytes", set()),
        ("short.onnx", "has 1279998 bytes instead of 1280002: it was not downloaded", set()),
        ("gone.onnx", "the server replied 404 Not Found$", set()),
        ("secret.onnx", "the server replied 403 Forbidden$", set()),
        ("busy.onnx", r"the server is busy \(429 Too Many Requests\): try again in 30 s$", set()),
        ("busier.onnx", "try again after Mon, 30 Nov 2026 12:00:00 GMT$", set()),
        ("maintenance.onnx", r"the server is busy \(503 Service Unavailable\): try again in 600 s$", set()),
        ("broken.onnx", "cut off at 0 bytes .the server replied 500 Internal Server Error.", set()),
        ("away.onnx", "redirected to http://example.org/tiny.onnx, which is not https", set()),
        *((name, "redirected to .*, a private address", set()) for name in PRIVATE),
    ],
)
def test_a_bad_download_is_reported(
    server: ModelServer, where: str, tmp_path: Path, name: str, message: str, left: set[str]
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        download.fetch(file_at(where + name))
    assert "\n" not in str(caught.value) and "signature" not in str(caught.value)
    assert kept(tmp_path / "cache") == left


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("changed.onnx", r"has SHA-256 [0-9a-f]{12}... instead of [0-9a-f]{12}...: it was not"),
        ("grown.onnx", "has 1280006 bytes instead of 1280002: it was not downloaded"),
    ],
)
@pytest.mark.parametrize("where", ["hub"], indirect=True)
def test_a_file_that_the_hub_describes_differently_is_not_downloaded(
    server: ModelServer, where: str, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        download.fetch(file_at(where + name))
    assert kept(tmp_path / "cache") == set()


@pytest.mark.parametrize("where", ["hub"], indirect=True)
def test_huggingface_hub_finds_what_was_downloaded(
    server: ModelServer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = download.fetch(file_at(f"{where}tiny.onnx"))
    cache = registry.hub_cache_folder()
    assert try_to_load_from_cache("org/repo", "tiny.onnx", cache_dir=cache, revision=COMMIT) == str(path)
    assert server.asked == [
        f"GET /org/repo/resolve/{COMMIT}/tiny.onnx",  # never a branch, which could move
        "GET /cdn/tiny.onnx?signature=secret",
    ]
    # What huggingface_hub saved, as links to blobs, is used too, and mended if damaged.
    blob = path.parents[2] / "blobs" / SHA256
    blob.parent.mkdir(exist_ok=True)
    path.rename(blob)
    path.symlink_to(blob)
    assert download.fetch(file_at(f"{where}tiny.onnx")) == path and len(server.asked) == 2
    blob.write_bytes(BODY[::-1])
    assert download.fetch(file_at(f"{where}tiny.onnx")).read_bytes() == BODY
    assert not path.is_symlink() and not blob.exists()


def test_a_later_run_resumes_a_download(server: ModelServer, where: str, tmp_path: Path) -> None:
    file = file_at(f"{where}tiny.onnx")
    part = download._part(file)
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:1_000_000])
    seen: list[tuple[int, int]] = []
    assert download.fetch(file, on_progress=lambda *bytes: seen.append(bytes)).read_bytes() == BODY
    assert seen[0][0] > 1_000_000 and seen[-1] == (len(BODY), len(BODY))
    # Two halves that do not belong together are found out, and fetched again from the start.
    part.write_bytes(b"other" * 1000)
    download.cached_path(file).unlink()
    assert download.fetch(file).read_bytes() == BODY
    assert kept(tmp_path / "cache") == {"model", "quarantine"}


def test_a_file_without_a_hash_is_resumed_only_if_the_server_still_has_it(
    server: ModelServer, tmp_path: Path
) -> None:
    cut, replaced = (file_at(f"{server.url}/{name}.onnx", sha256="", size=0) for name in ("cut", "replaced"))
    assert download.fetch(cut).read_bytes() == BODY
    assert server.gets["cut.onnx"] == 2  # the second half only
    # Each half of another file, or rather: the first is thrown away.
    assert download.fetch(replaced).read_bytes() == BODY[::-1]
    assert kept(tmp_path / "cache") == {"model"}


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_cancelled_download_is_resumed(
    server: ModelServer, where: str, tmp_path: Path, reason: BaseException
) -> None:
    """Ctrl-C, or a full disk."""
    file = file_at(f"{where}tiny.onnx")

    def stop(done: int, total: int) -> None:
        if done > 500_000:
            raise reason

    message = r"^$|No space left on device \(free up space and run again to resume\); set TFSWA_CACHE"
    with pytest.raises((KeyboardInterrupt, OutputError), match=message):
        download.fetch(file, on_progress=stop)
    assert kept(tmp_path / "cache") == {"partial"}
    seen: list[int] = []
    assert download.fetch(file, on_progress=lambda done, _: seen.append(done)).read_bytes() == BODY
    assert min(seen) > 500_000
    assert kept(tmp_path / "cache") == {"model"}


def test_a_disk_without_space_is_noticed_before_the_download(
    server: ModelServer, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**9, 10**9, 10**6))
    with pytest.raises(
        OutputError, match=r"needs 169 MB, but .* has only 1 MB left: free up space, or set TFSWA"
    ):
        download.fetch(file_at(f"{where}tiny.onnx", size=168_678_764))
    assert server.asked == [] and kept(tmp_path / "cache") == set()


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
        with pytest.raises(
            ModelError, match=r"is not downloaded and offline mode is on .* `tfswa-sep models pull"
        ):
            download.fetch(file_at(where), name=where)
    assert server.asked == ["GET /tiny.onnx"]


@pytest.mark.parametrize(
    ("where", "sha256", "copy"),
    [
        (
            f"hf://org/repo@{COMMIT}/a.onnx",
            SHA256,
            "copy the folder models--org--repo from its cache to {hub}$",
        ),
        ("https://a.org/a.onnx", SHA256, f"copy {SHA256[:16]}-a.onnx from its cache to {{cache}}$"),
        ("https://a.org/a.onnx", "", "copy the file whose path it prints, and use that: --model FILE$"),
    ],
)
def test_offline_says_what_to_type_elsewhere_and_what_to_copy(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, where: str, sha256: str, copy: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    copy = copy.format(hub=registry.hub_cache_folder(), cache=registry.cache_folder())
    with pytest.raises(
        ModelError, match=f"on another machine, type `tfswa-sep models pull best`; then {copy}"
    ):
        download.fetch(file_at(where, sha256=sha256), name="best")


def test_no_network_is_reported_at_once(server: ModelServer) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"cannot download http://127.0.0.1:1/tiny.onnx: .*online\?\)$"):
        download.fetch(file_at("http://127.0.0.1:1/tiny.onnx"))
    assert time.monotonic() - began < 20  # far below the patience that a download under way has


def test_a_cache_that_cannot_be_written_names_the_way_out(
    server: ModelServer, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TFSWA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="set TFSWA_CACHE"):
        download.fetch(file_at(f"{where}tiny.onnx"))


def test_other_users_of_the_process_are_unaffected(server: ModelServer) -> None:
    """The checks sit in huggingface_hub's own web client, and are off where the request is not ours."""
    from huggingface_hub import get_session

    download.fetch(file_at(f"{server.url}/tiny.onnx"))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(get_session().get(f"{server.url}/tiny.onnx")))
    thread.start()
    thread.join()
    assert answers[0].content == BODY
