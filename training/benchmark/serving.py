"""What `tfswa-sep serve` costs: python -m training.benchmark.serving SONG [--short SONG --count 100]

Prints one line per figure: memory at rest, time from the upload to sound that can be played, time per song against
the bare command, and memory over many short songs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

_COMMAND = [sys.executable, "-m", "tfswa_sep"]
_SOUND = 44_100 * 8  # bytes: a second of stereo


class _Server:
    def __init__(self, data: str) -> None:
        command = [*_COMMAND, "serve", "--port", "0", "--data", data, "--no-browser", "--max-queue", "1000"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.address = self.process.stdout.readline().split()[4].rstrip("/")

    def get(self, path: str, **headers: str) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers)) as answer:
            return bytes(answer.read())

    def add(self, song: Path) -> str:
        """Upload a song; return its job's id."""
        head = f'--b\r\ncontent-disposition: form-data; name="file"; filename="{song.name}"\r\n\r\n'
        body = head.encode() + song.read_bytes() + b"\r\n--b--\r\n"
        request = urllib.request.Request(
            f"{self.address}/v1/jobs", body, {"content-type": "multipart/form-data; boundary=b"}
        )
        with urllib.request.urlopen(request) as answer:
            return str(json.load(answer)["id"])

    def wait(self, job_id: str) -> dict[str, Any]:
        while (job := json.loads(self.get(f"/v1/jobs/{job_id}")))["state"] in ("queued", "running"):
            time.sleep(0.05)
        return dict(job)

    def megabytes(self) -> tuple[float, float]:
        """Resident memory of the server, and of its worker processes."""
        process = psutil.Process(self.process.pid)
        workers = sum(child.memory_info().rss for child in process.children(recursive=True))
        return process.memory_info().rss / 1e6, workers / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("song", type=Path)
    parser.add_argument("--short", type=Path)
    parser.add_argument("--count", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        server = _Server(data)
        try:
            _measure(server, arguments.song, arguments.short, arguments.count, Path(data))
        finally:
            server.process.terminate()
            server.process.wait()


def _measure(server: _Server, song: Path, short: Path | None, count: int, data: Path) -> None:
    time.sleep(1)
    print(f"at rest: server {server.megabytes()[0]:.0f} MB, workers {server.megabytes()[1]:.0f} MB")
    server.get("/")  # opening the page starts a worker
    time.sleep(3)
    began = time.perf_counter()
    job_id = server.add(song)
    while True:
        job = json.loads(server.get(f"/v1/jobs/{job_id}"))
        if job["playable"] >= 1:
            pieces = [
                server.get(f"/v1/jobs/{job_id}/pcm/{stem}", Range=f"bytes=0-{_SOUND - 1}")
                for stem in job["stems"]
            ]
            assert all(len(piece) == _SOUND for piece in pieces)
            break
        time.sleep(0.02)
    print(f"first sound of all stems: {time.perf_counter() - began:.2f} s after the upload began")
    done = server.wait(job_id)
    served = time.perf_counter() - began
    assert done["state"] == "done", done
    began = time.perf_counter()
    subprocess.run([*_COMMAND, str(song), "--out", str(data / "bare"), "--quiet"], check=True)
    bare = time.perf_counter() - began
    print(f"{done['seconds']:.0f} s of music: {served:.2f} s served, {bare:.2f} s by the command")
    print(f"served against the command: {served / bare:.2f} times")
    if short:
        for number in range(1, count + 1):
            assert server.wait(server.add(short))["state"] == "done"
            if number in (1, 10) or number % 50 == 0:
                of_server, of_workers = server.megabytes()
                print(f"after {number} short songs: server {of_server:.0f} MB, workers {of_workers:.0f} MB")


if __name__ == "__main__":
    main()
