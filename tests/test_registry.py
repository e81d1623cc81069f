"""models.toml is read strictly, and no file is handed out that is not the one on record."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tfswa_sep import download, registry
from tfswa_sep.errors import ModelError, OutputError
from tfswa_sep.registry import ModelFile, ModelInfo

BODY = b"\x08\x0a" + bytes(range(256)) * 5000  # 1.3 MB, begins like an ONNX file
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENTRY = f"""
[models.tiny]
summary = "for tests"
stems = ["vocals", "other"]
sample_rate = 44100
channels = 2
license = "MIT"
training_data = "none"
default = true

[models.tiny.scores]
vocals = 6

[[models.tiny.files]]
backend = "onnx"
where = "tiny.onnx"
sha256 = "{SHA256}"
bytes = {len(BODY)}
"""


def model_of(where: str, *, sha256: str = SHA256, size: int = len(BODY)) -> ModelInfo:
    small = registry.default_model()
    return replace(small, name="tiny", files=(ModelFile("onnx", where, sha256, size),))


def write_registry(folder: Path, text: str = ENTRY) -> Path:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading models.toml


def test_our_own_registry_lists_the_bundled_default_and_its_file_is_whole() -> None:
    models = registry.load_registry()
    default = next(iter(models.values()))
    assert default.name == "small" and default.default
    assert default.stems == ("vocals", "drums", "bass", "other")
    for model in models.values():  # only models that exist are listed
        for file in model.files:
            if file.where.startswith("bundled:"):
                assert registry.fetch(model, file.backend).parent == registry.WEIGHTS


def test_an_entry_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(BODY)
    model = registry.load_registry(write_registry(tmp_path))["tiny"]
    assert (model.stems, model.sample_rate, model.channels) == (("vocals", "other"), 44100, 2)
    assert model.scores == {"vocals": 6.0}
    assert (
        registry.fetch(model, "onnx") == tmp_path / "tiny.onnx"
    )  # a relative path starts beside models.toml


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[models.tiny]", "[models.tiny", "cannot read"),
        ("[models.tiny]", "[extra]\na = 1\n[models.tiny]", "nothing else"),
        ("default = true", "default = false", "exactly one model"),
        ("default = true", 'default = true\nclass = "os.system"', "unknown key 'class'"),
        ('license = "MIT"\n', "", "'license' is missing"),
        ("sample_rate = 44100", 'sample_rate = "44100"', "sample_rate must be of the type int"),
        ("channels = 2", "channels = true", "channels must be of the type int"),
        ("vocals = 6", 'vocals = "good"', "scores must be numbers"),
        ('stems = ["vocals", "other"]', "stems = [1]", "list of names"),
        ('backend = "onnx"', 'backend = "pickle"', "unknown backend 'pickle'"),
        (SHA256, SHA256[:-1], "needs its sha256"),
        (f"bytes = {len(BODY)}", "bytes = 0", "needs its sha256"),
        ("tiny.onnx", "tiny.pt", "must end in .onnx"),
        ("tiny.onnx", "tiny.safetensors", "must end in .onnx"),
        ("tiny.onnx", "../tiny.onnx", "must not climb"),
        ("tiny.onnx", "bundled:../tiny.onnx", "must not climb"),
        ("tiny.onnx", "bundled:a/tiny.onnx", "bare file name"),
        ("tiny.onnx", "bundled:/etc/tiny.onnx", "bare file name"),
        ("tiny.onnx", "hf://org/repo@main/tiny.onnx", "40 digits"),
        ("tiny.onnx", f"hf://org/repo@{COMMIT}/../tiny.onnx", "must not climb"),
        ("tiny.onnx", f"hf://org/repo@{COMMIT}//tiny.onnx", "40 digits"),
        ("tiny.onnx", "http://example.org/tiny.onnx", "https://"),
        ("tiny.onnx", "http://127.0.0.1.example.org/tiny.onnx", "https://"),
        ("tiny.onnx", "ftp://example.org/tiny.onnx", "https://"),
        ("tiny.onnx", "file:///etc/tiny.onnx", "https://"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in ENTRY
    path = write_registry(tmp_path, ENTRY.replace(old, new, 1))
    with pytest.raises(ModelError, match=message) as caught:
        registry.load_registry(path)
    assert str(path) in str(caught.value)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'smal': did you mean 'small'\? .*tfswa-sep models"):
        registry.find_model("smal")


# --- files of the user's own


def test_a_file_of_the_user_needs_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(BODY)
    model = registry.find_model(path)
    assert (model.name, model.stems, model.files[0].sha256) == ("mine", (), "")
    assert registry.fetch(model, "onnx") == path
    with pytest.raises(ModelError, match="no file for the torch backend, only for onnx"):
        registry.fetch(model, "torch")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zip.onnx", b"PK\x03\x04 a torch checkpoint", "pickle"),
        ("old.safetensors", b"\x80\x02}q\x00.", "pickle"),
        ("text.onnx", b"hello", "is no .onnx file"),
        ("empty.onnx", b"", "is no .onnx file"),
        ("cut.safetensors", (1000).to_bytes(8, "little") + b"{}", "is no .safetensors file"),
        ("weights.pt", b"PK\x03\x04", "can run code"),
    ],
)
def test_a_file_that_is_no_model_is_not_opened(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        registry.fetch(registry.find_model(path), registry.SUFFIXES.get(path.suffix, "onnx"))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        registry.find_model(tmp_path / "none.onnx")


@pytest.mark.parametrize("damaged", [BODY[:-1], BODY[:-1] + b"x", None])
def test_a_damaged_bundled_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bytes | None
) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    if damaged is not None:
        (tmp_path / "tiny.onnx").write_bytes(damaged)
    with pytest.raises(ModelError, match=r"not opened|missing"):
        registry.fetch(model_of("bundled:tiny.onnx"), "onnx")


# --- downloads, from a server on this machine


class Handler(http.server.BaseHTTPRequestHandler):
    """A web server and a Hugging Face hub, with one answer a path."""

    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        if self.path.endswith("away.onnx"):
            self.send_response(302)
            self.send_header("Location", "http://example.org/tiny.onnx")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.endswith(("tiny.onnx", "wrong.onnx", "cut.onnx", "long.onnx")):
            body = BODY if "wrong" not in self.path else BODY[::-1]
            body += b"more" * ("long" in self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body if "cut" not in self.path else body[: len(body) // 2])
                self.close_connection = True
        else:
            self.send_error(404)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("TFSWA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def test_a_download_is_kept_and_not_asked_for_again(server: str, tmp_path: Path) -> None:
    model = model_of(f"{server}/tiny.onnx")
    path = registry.fetch(model, "onnx")
    assert path.read_bytes() == BODY
    assert registry.fetch(model, "onnx") == path
    assert Handler.asked == ["GET /tiny.onnx"]
    path.write_bytes(BODY[:-3])  # the disk was full, or somebody wrote into it
    assert registry.fetch(model, "onnx").read_bytes() == BODY
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong.onnx", "has the SHA-256"),
        ("cut.onnx", "cut off at 640001 of 1280002 bytes"),
        ("long.onnx", "longer than the 1280002 bytes"),
        ("gone.onnx", "the server says 404"),
        ("away.onnx", "leads to http://example.org/tiny.onnx, which is not https"),
    ],
)
def test_a_bad_download_leaves_nothing_behind(server: str, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        registry.fetch(model_of(f"{server}/{name}"), "onnx")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFSWA_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ModelError, match=r"cannot download http://127.0.0.1:1/tiny.onnx: .*online\?\)$"):
        registry.fetch(model_of("http://127.0.0.1:1/tiny.onnx"), "onnx")


def test_a_cache_that_cannot_be_written_names_the_way_out(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TFSWA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="set TFSWA_CACHE"):
        registry.fetch(model_of(f"{server}/tiny.onnx"), "onnx")


def test_only_https_or_this_machine() -> None:
    allowed = ["https://example.org/a", "http://localhost:8000/a", "http://127.0.0.1/a", "http://[::1]:1/a"]
    refused = [
        "http://example.org/a",
        "http://localhost.example.org/a",
        "https:///a",
        "ftp://localhost/a",
        "a.onnx",
    ]
    assert all(map(download.is_allowed_url, allowed))
    assert not any(map(download.is_allowed_url, refused))


HUB_SCRIPT = textwrap.dedent(
    """
    import sys
    from tfswa_sep import download
    from tfswa_sep.errors import TfswaError
    from pathlib import Path
    cache, commit, size, sha256 = sys.argv[1:5]
    for file in sys.argv[5:]:
        try:
            expected = {"size": int(size), "sha256": sha256}
            path = download.from_hugging_face("org/repo", commit, file, into=Path(cache), **expected)
            print("ok", path.stat().st_size)
        except TfswaError as error:
            print(type(error).__name__, error)
    """
)


def test_the_real_hugging_face_client(server: str, tmp_path: Path) -> None:
    """Its own process: the client reads HF_ENDPOINT when it is imported."""

    def ask(*files: str, endpoint: str = server) -> list[str]:
        arguments = [str(tmp_path / "hub"), COMMIT, str(len(BODY)), SHA256, *files]
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", HUB_SCRIPT, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.splitlines()

    good, wrong, gone = ask("tiny.onnx", "wrong.onnx", "gone.onnx")
    assert good == f"ok {len(BODY)}"
    assert wrong.startswith("ModelError wrong.onnx of org/repo from Hugging Face has the SHA-256")
    assert gone.startswith("ModelError cannot download gone.onnx of org/repo from Hugging Face:")
    assert all(COMMIT in request for request in Handler.asked)  # never a branch, which could move
    # Offline now: what was whole is still there, what was thrown away cannot be got.
    kept, missing = ask("tiny.onnx", "wrong.onnx", endpoint="http://127.0.0.1:1")
    assert kept == f"ok {len(BODY)}"
    assert missing.startswith("ModelError cannot download wrong.onnx")
