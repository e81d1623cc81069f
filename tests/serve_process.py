"""`tfswa-sep serve` in a process of its own, for tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from waiting import wait_for


class Server:
    """The command, in a process of its own."""

    def __init__(self, data: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "tfswa_sep", "serve", "--data", str(data)]
        self.data = data
        self.process = subprocess.Popen(
            [*command, "--no-browser", "--port", "0", *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().split()[4].rstrip("/")
        self.port = int(self.address.rpartition(":")[2])

    def curl(self, path: str, *options: str) -> Any:
        command = ["curl", "--silent", "--noproxy", "*", "--max-time", "300", *options, self.address + path]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def get(self, path: str) -> Any:
        return json.loads(self.curl(path))

    def add(self, *songs: Path, **fields: str) -> Any:
        parts = [f'file=@"{song}"' for song in songs] + [f"{name}={value}" for name, value in fields.items()]
        return json.loads(self.curl("/v1/jobs", *(word for part in parts for word in ("--form", part))))

    def wait(self, job_id: str, *states: str) -> Any:
        return wait_for(lambda: (job := self.get(f"/v1/jobs/{job_id}"))["state"] in states and job)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(300)
        assert self.process.stdout
        self.process.stdout.close()
