"""A web server and a Hugging Face hub on this machine, which cuts, corrupts, stalls, refuses and redirects.

What it does depends on the name of the file: see `Handler.send_file`. "The first" is the first GET of a name. As on the
hub, a file under /resolve/ is described and redirected to another address, which sends it.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BODY = b"\x08\x0a" + bytes(range(256)) * 5000  # 1.3 MB, begins like an ONNX file
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REDIRECTS = {
    "away.onnx": "http://example.org/tiny.onnx",
    "metadata.onnx": "https://169.254.169.254/latest/tiny.onnx",  # where clouds keep their secrets
    "loopback.onnx": "https://localhost:1/tiny.onnx",
    "mapped.onnx": "https://[::ffff:10.0.0.1]/tiny.onnx",
    "decimal.onnx": "https://2130706433/tiny.onnx",  # 127.0.0.1
    "home.onnx": "/tiny.onnx",  # the same origin, which the user chose
}
REFUSALS = {  # status and Retry-After
    "gone.onnx": (404, ""),
    "secret.onnx": (403, ""),
    "busy.onnx": (429, "30"),
    "busier.onnx": (429, "Mon, 30 Nov 2026 12:00:00 GMT"),
    "maintenance.onnx": (503, "600"),
    "broken.onnx": (500, ""),
    "hiccup.onnx": (500, ""),  # the first time only
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        self.server.asked.append(f"{self.command} {self.path}")
        if authorization := self.headers.get("Authorization"):
            self.server.authorized.append(authorization)
        self.server.gets[name] += self.command == "GET"
        first = self.server.gets[name] <= 1
        if self.path.startswith("/api/models/org/repo/revision/"):
            self.describe_repository()
        elif name in REFUSALS and (first or name != "hiccup.onnx"):
            self.refuse(*REFUSALS[name])
        elif name in REDIRECTS or "/resolve/" in self.path:
            self.server.gets[name] -= self.command == "GET" and name not in REDIRECTS
            self.redirect(name)
        elif name == "silent.onnx" and first:  # as if a kept connection had been closed in the meantime
            self.close_connection = True
        else:
            self.send_file(name, first=first)

    def refuse(self, status: int, wait: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if wait:
            self.send_header("Retry-After", wait)
        self.end_headers()

    def redirect(self, name: str) -> None:
        self.send_response(302)
        self.send_header("Location", REDIRECTS.get(name, f"/cdn/{name}?signature=secret"))
        self.send_header("Content-Length", "0")
        if "/resolve/" in self.path:
            body = BODY[::-1] if name == "changed.onnx" else BODY + b"more" if name == "grown.onnx" else BODY
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()

    def send_file(self, name: str, *, first: bool) -> None:
        body, start = self.server.files.get(name, BODY), self.range_start()
        if name in ("wrong.onnx", "replaced.onnx") or (name == "once.onnx" and first):
            body = BODY[::-1]
        if name == "replaced.onnx" and first:  # and cut off
            body = BODY
        if name == "short.onnx":
            body = BODY[:-4]
        if name == "long.onnx":
            body = BODY + b"more"
        if name == "text.onnx":
            body = b"<html>not found</html>"
        if name == "restart.onnx":  # a server that knows no ranges
            start = 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest, end = body[start:], len(body)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == "slow.onnx":
            time.sleep(0.4)
        if name in ("cut.onnx", "cut.zip", "restart.onnx", "replaced.onnx") and first:
            rest = rest[: len(rest) // 2]
        if name == "severed.onnx":  # never more than the first half
            rest = rest[: max(0, len(body) // 2 - start)]
        if name == "frozen.onnx" or (
            name == "stall.onnx" and first
        ):  # the former after the first half, for good
            self.wfile.write(rest[: max(0, len(body) // 2 - start)])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.closing.wait(300)
            rest = b""
        self.wfile.write(rest)
        self.close_connection = True

    def range_start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])

    def describe_repository(self) -> None:
        lfs = {"sha256": SHA256, "size": len(BODY), "pointerSize": 130}
        files = [{"rfilename": "README.md", "size": 10}]
        files += [{"rfilename": name, "size": len(BODY), "lfs": lfs} for name in self.server.repository]
        body = json.dumps({"id": "org/repo", "sha": COMMIT, "siblings": files}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class ModelServer(http.server.ThreadingHTTPServer):
    """asked: the requests so far.  authorized: their credentials.  repository: the model files of org/repo.

    files: what is sent for a name in place of BODY.  stalled: whether half of a file has been sent, and no more.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.authorized: list[str] = []
        self.gets: Counter[str] = Counter()
        self.repository = ["tiny.onnx"]
        self.files: dict[str, bytes] = {}
        self.stalled = threading.Event()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def ask_this_hub(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which is read when huggingface_hub is imported."""
    from huggingface_hub import constants

    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def running_server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
