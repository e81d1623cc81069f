"""A fake Hugging Face hub that takes an upload and serves it; large files use git-lfs, as on the real one."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMIT = "0123456789" * 4


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers about its only repository, org/tried."""

    files: dict[str, bytes]
    blobs: dict[str, bytes]
    requests: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, content: Any, *, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body, path = self.body(), self.path.partition("?")[0]
        self.requests.append(f"POST {path}")
        address = f"http://{self.headers['Host']}"
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid username or password."}, code=401)
        elif path == "/api/repos/create":
            self.answer({"url": f"{address}/org/tried", "id": "org/tried", "name": "org/tried"})
        elif path == "/api/validate-yaml":  # of the model card
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > 10_000 else "regular",
                      "shouldIgnore": False, "oid": None} for f in files]  # fmt: skip
            self.answer({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{address}/blob/{item['oid']}", "header": {}}}}
                for item in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    assert value["encoding"] == "base64"
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    self.files[value["path"]] = self.blobs[value["oid"]]
            self.answer({"commitUrl": f"{address}/org/tried/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer({}, code=404)

    def do_PUT(self) -> None:
        self.blobs[self.path.removeprefix("/blob/")] = self.body()
        self.answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/org/tried"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": "org/tried", "sha": COMMIT, "siblings": siblings, "xetEnabled": False})
            return
        content = self.files.get(path.removeprefix(f"/org/tried/resolve/{COMMIT}/"))
        if content is None:
            self.answer({}, code=404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@contextmanager
def fake_hub(home: Path) -> Iterator[dict[str, str]]:
    """Start an empty hub; yields the environment of its clients, who keep downloads in `home`."""
    Hub.files, Hub.blobs, Hub.requests = {}, {}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield {
                "HF_ENDPOINT": f"http://127.0.0.1:{running.server_port}", "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_TOKEN": "hf_right", "no_proxy": "127.0.0.1",
            }  # fmt: skip
        finally:
            running.shutdown()
            thread.join()
