"""A proxy in front of a web server that fails on purpose, as busy object stores do."""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FlakyProxy(ThreadingHTTPServer):
    """Forwards requests to 127.0.0.1:`port`.

    A share `rate` of them is answered with 503, 500 or 429, or with half of the body.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, *, rate: float, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = port
        self.rate = rate
        self.faults = Counter[str]()
        self.requests = 0
        self.random = random.Random(seed)
        self.lock = threading.Lock()

    def next_fault(self) -> str:
        """What happens to the next request; "" for nothing."""
        with self.lock:
            self.requests += 1
            if self.random.random() >= self.rate:
                return ""
            fault = self.random.choice(["503", "500", "429", "cut"])
            self.faults[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are expected."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FlakyProxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._read_chunks()
        fault = self.server.next_fault()
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        headers = {
            k: v for k, v in self.headers.items() if k.lower() not in ("connection", "transfer-encoding")
        }
        headers["Content-Length"] = str(len(body))
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if fault else content)
        if fault and content:
            self.close_connection = True
        upstream.close()

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def running_proxy(port: int, *, rate: float, seed: int = 0) -> Iterator[FlakyProxy]:
    """A proxy that runs until the end of the block."""
    with FlakyProxy(port, rate=rate, seed=seed) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            with suppress(Exception):
                proxy.shutdown()
