"""Jobs on disk: one row each in an SQLite database, so that they survive a restart or a crash."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

State = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One song to separate, and what became of it."""

    id: str
    name: str  # the song's file name, as its owner sees it
    state: State = "queued"
    model: str = ""  # registered name; "" for the server's default
    stems: tuple[str, ...] = ()  # requested; () for all of the model's
    created: float  # Unix time, as are the next two
    started: float | None = None
    finished: float | None = None
    attempts: int = 0  # times that it was started
    suffix: str = ""  # of the uploaded file, such as ".mp3"
    path: str = ""  # of a song that was named by path, "" for an upload
    seconds: float | None = None  # length of the song
    sample_rate: int = 0  # Hz, of the stems
    channels: int = 0  # of the stems
    made: tuple[str, ...] = ()  # finished stems
    warnings: tuple[str, ...] = ()
    error: Mapping[str, str] = field(default_factory=dict)  # {"kind", "message"}


class Store:
    """The database. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, document TEXT NOT NULL)"
        )

    def load(self) -> list[Job]:
        """All jobs, the oldest first."""
        with self._lock:
            rows = self._database.execute("SELECT document FROM jobs").fetchall()
        return sorted((_read(json.loads(row[0])) for row in rows), key=lambda job: job.created)

    def save(self, job: Job) -> None:
        """Insert or replace a job."""
        with self._lock:
            self._database.execute(
                "INSERT OR REPLACE INTO jobs VALUES (?, ?)", (job.id, json.dumps(asdict(job)))
            )

    def delete(self, job_id: str) -> None:
        """Forget a job."""
        with self._lock:
            self._database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def close(self) -> None:
        """Close the database; it cannot be used afterwards."""
        with self._lock:
            self._database.close()


def _read(document: dict[str, Any]) -> Job:
    known = {each.name for each in fields(Job)}  # another version may have written more
    values = {name: value for name, value in document.items() if name in known}
    for name in ("stems", "made", "warnings"):
        values[name] = tuple(values.get(name, ()))
    return Job(**values)
