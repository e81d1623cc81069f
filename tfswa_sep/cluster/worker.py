"""What one process of a cluster does with a song: fetch it, separate it, store its stems, and return its row.

Beside the stems, and after them, goes a marker: what the row says of them, as JSON. So a song that was finished, but
whose row was lost with the process that collected them, need not be separated again, and somebody else's files are
never replaced.
"""

from __future__ import annotations

import json
import platform
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfswa_sep.audio.atomic_file import temporary_folder
from tfswa_sep.audio.stem_paths import song_folder
from tfswa_sep.batch.plan import describe_options
from tfswa_sep.cluster.catalog import Song, key_of
from tfswa_sep.cluster.store import Entry, Store, entry_of, fetch
from tfswa_sep.errors import ModelError, OutputError, TfswaError, UsageError
from tfswa_sep.options import OutputOptions, Runtime
from tfswa_sep.registry import digest

if TYPE_CHECKING:
    from tfswa_sep.registry import ModelInfo
    from tfswa_sep.separator import Separator

MARKER = ".{track}.row.json"
FATAL = {
    kind.__name__: kind for kind in (UsageError, ModelError)
}  # errors that every other song would have too
Row = dict[str, Any]
_RESULTS = (
    "version",
    "size",
    "sha256",
    "seconds",
    "sample_rate",
    "stems",
    "stem_bytes",
    "warnings",
)  # in a marker


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all songs of a batch have in common. Can be sent to another machine.

    Attributes:
        target: URL of the folder or prefix that the stems go to.
        model: The model.
        runtime: See Runtime.
        options: See OutputOptions; `out` and `overwrite` are not used.
        overwrite: Redo finished songs, and replace any file.
    """

    target: str
    model: ModelInfo
    runtime: Runtime
    options: OutputOptions
    overwrite: bool = False

    @cached_property
    def work(self) -> str:
        """A digest of the model and of the options that determine the stems."""
        options = describe_options(self.options, self.runtime)
        files = [[file.label, file.sha256 or file.where] for file in self.model.files]
        return f"{key_of(json.dumps([files, options], sort_keys=True, default=str)):016x}"


class SongWorker:
    """Separates songs with one loaded model.

    It may be called from two threads at once: while one separates, the other fetches and stores.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._target = Store(job.target)
        self._computing = threading.Lock()
        self._counted = 0.0  # CPU seconds of this process that rows have been given

    @cached_property
    def _separator(self) -> Separator:
        from tfswa_sep.separator import Separator

        return Separator(self._job.model, runtime=self._job.runtime)

    def prepare(self) -> str:
        """Load the model, and return this machine's name. Raises TfswaError if it cannot be loaded."""
        with self._computing:
            _ = self._separator.backend
        return platform.node()

    def separate(self, song: Song) -> Row:
        """Separate a song and return its row, whether that went well or not.

        "cpu" in it is the CPU time of this process since the last row: two songs at once overlap.
        """
        began = time.monotonic()
        row = new_row(song, self._job) | {"worker": platform.node(), "attempts": 1}
        try:
            row |= self._separate(song, row)
            row["state"] = "done"
        except Exception as error:
            row |= {"state": "failed", "error": type(error).__name__, "message": str(error)}
            if not isinstance(error, TfswaError):  # a bug: the place where it happened helps
                frame = traceback.extract_tb(error.__traceback__)[-1]
                row["message"] += f" ({Path(frame.filename).name}, line {frame.lineno})"
        row["took"] = round(time.monotonic() - began, 3)
        cpu = time.process_time()
        row["cpu"], self._counted = cpu - self._counted, cpu
        row["finished"] = datetime.now(UTC)
        return row

    def _separate(self, song: Song, row: Row) -> Row:
        """What separating the song adds to its row."""
        place = _join(song.folder, song_folder(self._job.options.name, song.track).as_posix())
        there = self._target.names_in(place)
        marker = MARKER.format(track=song.track)
        before = self._read_marker(_join(place, marker)) if marker in there else {}
        if not self._job.overwrite:
            if _is_finished(before, row):
                return {key: before[key] for key in _RESULTS}
            if before and before["source"] != song.source:
                raise OutputError(
                    f"{_join(self._target.url, place)} has the stems of {before['source']}: choose another --out"
                )
        own = set(before.get("stems", ()))
        with temporary_folder() as temporary:
            path, entry = local_copy(song, temporary)
            out = temporary / "stems"
            out.mkdir()
            with self._computing:
                written = self._separator.separate_file(
                    path, replace(self._job.options, out=out, overwrite=True), track_name=song.track
                )
            files = [*written.files.values(), *([written.stem_file] if written.stem_file else [])]
            names = {file: _join(song.folder, file.relative_to(out).as_posix()) for file in files}
            foreign = {name.rpartition("/")[2] for name in names.values() if name not in own} & there
            if foreign and not self._job.overwrite:
                raise OutputError(
                    f"{_join(self._target.url, place, min(foreign))} exists already: use --overwrite to replace it, "
                    "or choose another --out"
                )
            results = {
                "version": song.version or entry.version,
                "size": entry.size,
                "sha256": digest(path),
                "seconds": round(written.seconds, 3),
                "sample_rate": written.sample_rate,
                "stems": list(names.values()),
                "stem_bytes": sum(file.stat().st_size for file in files),
                "warnings": [text.replace(str(path), song.source) for text in written.warnings],
            }
            known = {"source": song.source, "work": self._job.work}
            # The stems' names come first: if this process dies half-way, the next one may replace them.
            announced = {**known, "state": "storing", "stems": sorted({*names.values(), *own})}
            self._write_marker(_join(place, marker), announced)
            if there:
                self._target.abort_uploads(place)
            for file, name in names.items():
                self._target.put(file, name)
            for name in own - set(names.values()):
                self._target.remove(name)
            self._write_marker(_join(place, marker), {**known, "state": "done", **results})
        return results

    def _read_marker(self, name: str) -> Row:
        """A marker; {} if it is none."""
        try:
            row = json.loads(self._target.read(name) or b"{}")
        except ValueError:
            return {}
        return row if isinstance(row, dict) and {"source", "work", "state", "stems"} <= row.keys() else {}

    def _write_marker(self, name: str, row: Mapping[str, Any]) -> None:
        self._target.write(name, json.dumps(row, indent=1).encode())


def new_row(song: Song, job: Job) -> Row:
    """The row of a song of which nothing is known yet."""
    return {
        "source": song.source,
        "version": song.version,
        "size": song.size,
        "target": _join(job.target, song.folder),
        "model": job.model.name,
        "work": job.work,
        **song.columns,
    }


def local_copy(song: Song, folder: Path) -> tuple[Path, Entry]:
    """A song as a local file, if need be a copy in `folder`, and what is known of it. Raises InputError."""
    store = Store(song.source)
    if store.is_local:
        path = Path(store.root)
        return path, entry_of(song.source, store.fs.info(store.root)) if path.is_file() else Entry(
            "", None, ""
        )
    path = folder / song.source.rpartition("/")[2][-100:]
    return path, fetch(song.source, path, size=song.size)


def _is_finished(before: Row, row: Row) -> bool:
    """Whether a marker says that exactly this was done."""
    return (
        before.get("state") == "done"
        and before.keys() >= set(_RESULTS)
        and all(before[key] == row[key] for key in ("source", "work"))
        and row["version"] in ("", before["version"])
    )


def _join(*parts: str) -> str:
    return "/".join(part.rstrip("/") for part in parts if part not in ("", "."))
