"""The rows of a batch, one per song, in Parquet files below TARGET/rows/.

A run only adds files while it runs. At its start and end `compact` removes rows that a later row of the same song has
replaced, such as that of a failure. The names of the files sort by time.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from tfswa_sep.cluster.catalog import key_of
from tfswa_sep.cluster.store import Store
from tfswa_sep.errors import OutputError

FOLDER = "rows"
_FLUSH_ROWS, _FLUSH_SECONDS = 2_000, 60.0
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("version", pa.string()),
        ("state", pa.string()),  # done or failed
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("seconds", pa.float64()),  # of music
        ("sample_rate", pa.int32()),
        ("target", pa.string()),
        ("stems", pa.list_(pa.string())),
        ("stem_bytes", pa.int64()),
        ("model", pa.string()),
        ("work", pa.string()),  # digest of the model and the options
        ("warnings", pa.list_(pa.string())),
        ("error", pa.string()),  # its class
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("took", pa.float64()),  # seconds
        ("worker", pa.string()),
        ("finished", pa.timestamp("ms", tz="UTC")),
    ]
)


class RowWriter:
    """Collects rows and writes them from time to time; used as a context manager, it writes the rest at the end.

    Args:
        store: The target.
        columns: The schema of further columns.
    """

    def __init__(self, store: Store, columns: pa.Schema) -> None:
        self._store = store
        self._schema = pa.schema([*SCHEMA, *columns])
        self._run = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self._files = 0
        self._rows: list[Mapping[str, Any]] = []
        self._last = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row. Raises OutputError if rows are due and cannot be written."""
        self._rows.append(row)
        if len(self._rows) >= _FLUSH_ROWS or time.monotonic() - self._last >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that have been added. Raises OutputError."""
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            _write(self._store, f"{self._run}-{self._files:06}.parquet", table)
            self._files += 1
            self._rows = []
        self._last = time.monotonic()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def finished_keys(store: Store, work: str) -> NDArray[np.uint64]:
    """The sorted digests, see `done_key`, of songs that are done with this model and these options."""
    keys = []
    for name in _names(store):
        table = _read(store, name, ["source", "version", "state", "work"])
        done = table.filter(
            pa.compute.and_(pa.compute.equal(table["state"], "done"), pa.compute.equal(table["work"], work))
        )
        pairs = zip(done["source"].to_pylist(), done["version"].to_pylist(), strict=True)
        found = [
            key for source, version in pairs for key in (done_key(source, version), done_key(source, ""))
        ]
        keys.append(np.array(found, np.uint64))
    return np.unique(np.concatenate(keys)) if keys else np.array([], np.uint64)


def done_key(source: str, version: str) -> int:
    """The digest of a song; version "" stands for any."""
    return key_of(source, version or "")


def compact(store: Store) -> None:
    """Leave only the last row of each song. Raises OutputError."""
    names = _names(store)
    if not names:
        return
    sources = [
        np.array(
            [key_of(source) for source in _read(store, name, ["source"])["source"].to_pylist()], np.uint64
        )
        for name in names
    ]
    reversed_keys = np.concatenate(sources)[::-1]
    _, first = np.unique(reversed_keys, return_index=True)
    kept = np.zeros(len(reversed_keys), bool)
    kept[len(reversed_keys) - 1 - first] = True
    start = 0
    for name, keys in zip(names, sources, strict=True):
        mine = kept[start : start + len(keys)]
        start += len(keys)
        if mine.all():
            continue
        if mine.any():
            _write(store, name, _read(store, name).filter(pa.array(mine)))
        else:
            store.remove(f"{FOLDER}/{name}")


def _names(store: Store) -> list[str]:
    names = store.names_in(FOLDER)
    return sorted(name for name in names if name.endswith(".parquet") and not name.startswith("."))


def _read(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    content = store.read(f"{FOLDER}/{name}") or b""
    try:
        return pa.parquet.read_table(io.BytesIO(content), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise OutputError(
            f"{store.url}/{FOLDER}/{name} is damaged ({str(error).splitlines()[0]}): remove it"
        ) from None


def _write(store: Store, name: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pa.parquet.write_table(table, buffer, compression="zstd")
    store.write(f"{FOLDER}/{name}", buffer.getvalue())
