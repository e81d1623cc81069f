"""Which songs a batch has: a folder, a bucket prefix, or a manifest, written to a local Parquet file.

A million songs need not fit into memory: they are listed once, to the file, and read from it in pieces. While they are
listed, 16 bytes of each stay in memory, to find those that would get the same folder.
"""

from __future__ import annotations

import hashlib
import posixpath
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from tfswa_sep.audio.stem_paths import default_track_name
from tfswa_sep.batch.inputs import SONG_EXTENSIONS
from tfswa_sep.batch.plan import file_system_key
from tfswa_sep.cluster.store import Store, describe, walk
from tfswa_sep.errors import InputError

MANIFESTS = (".csv", ".parquet", ".jsonl", ".ndjson")
PATH_COLUMN = "path"
_ROWS = 10_000  # per piece of the file
_OWN = pa.schema(
    [
        ("source", pa.string()),
        ("folder", pa.string()),
        ("track", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
    ]
)


@dataclass(frozen=True)
class Song:
    """A song of a catalogue.

    Attributes:
        source: Its URL or path.
        folder: Where its stems go below the target, with / between folders.
        track: Its name in the paths of its stems.
        size: Bytes; None if unknown.
        version: See store.Entry; "" if it was not listed.
        columns: Further columns of the manifest.
    """

    source: str
    folder: str
    track: str
    size: int | None
    version: str
    columns: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The songs of a batch.

    Attributes:
        path: The Parquet file.
        songs: How many, each counted once.
        size: Their bytes; None if any is unknown.
        ignored: Files that are not songs.
        columns: The schema of the manifest's further columns.
        same_target: Digests of folders and tracks that several songs share.
        repeated: Digests of sources that are listed more than once.
    """

    path: Path
    songs: int
    size: int | None
    ignored: int
    columns: pa.Schema
    same_target: NDArray[np.uint64]
    repeated: NDArray[np.uint64]

    def __iter__(self) -> Iterator[Song]:
        """Each song once; those that share a target get a part of their digest in their names."""
        seen = set[int]()
        with pa.parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    source = key_of(row["source"])
                    if is_in(source, self.repeated):
                        if source in seen:
                            continue
                        seen.add(source)
                    track = row["track"]
                    if is_in(_target_key(row["folder"], track), self.same_target):
                        track = f"{track}-{source:016x}"[: len(track) + 7]
                    columns = {name: row[name] for name in self.columns.names}
                    yield Song(row["source"], row["folder"], track, row["size"], row["version"], columns)


def key_of(*parts: str) -> int:
    """A 64-bit digest of some strings."""
    return int.from_bytes(
        hashlib.blake2b("\0".join(parts).encode(errors="surrogateescape"), digest_size=8).digest()
    )


def write_catalog(source: str, path: Path) -> Catalog:
    """List the songs of a source.

    Args:
        source: A folder, a bucket prefix, or a manifest (.csv, .parquet, .jsonl) with a column "path"; paths in it
            may be relative to its own folder.
        path: The Parquet file to write.

    Raises:
        InputError: There are no songs, or the manifest cannot be read.
        UsageError: The URL cannot be opened.
    """
    store = Store(source)
    if posixpath.splitext(store.root)[1].lower() in MANIFESTS:
        columns, batches = _read_manifest(store)
        rows, ignored = _rows_of_manifest(batches, store), [0]
    else:
        columns, ignored = pa.schema([]), [0]
        rows = _rows_of_store(store, ignored)
    schema = pa.schema([*_OWN, *columns])
    targets, sources = array("Q"), array("Q")
    size, known = 0, True
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for piece in _pieces(rows):
            writer.write_table(pa.Table.from_pylist(piece, schema=schema))
            for row in piece:
                targets.append(_target_key(row["folder"], row["track"]))
                sources.append(key_of(row["source"]))
                size += row["size"] or 0
                known = known and row["size"] is not None
    if not sources:
        raise InputError(f"no songs in {source}" + (f" ({ignored[0]} other files)" if ignored[0] else ""))
    source_keys, first = np.unique(np.frombuffer(sources, np.uint64), return_index=True)
    return Catalog(
        path=path,
        songs=len(source_keys),
        size=size if known else None,
        ignored=ignored[0],
        columns=columns,
        same_target=_repeated(np.frombuffer(targets, np.uint64)[first]),
        repeated=_repeated(np.frombuffer(sources, np.uint64)),
    )


def _rows_of_store(store: Store, ignored: list[int]) -> Iterator[dict[str, Any]]:
    for entry in walk(store):
        if posixpath.splitext(entry.url)[1].lower() not in SONG_EXTENSIONS:
            ignored[0] += 1
            continue
        below = _below(entry.url, store.url)
        yield _row(entry.url, posixpath.dirname(below), entry.size, entry.version)


def _below(url: str, root: str) -> str:
    return url.removeprefix(root.rstrip("/") + "/")


def _read_manifest(store: Store) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of the columns besides "path", and the manifest in pieces."""
    kind = posixpath.splitext(store.root)[1].lower()
    try:
        file = store.fs.open(store.root, "rb")
        if kind == ".parquet":
            parquet = pa.parquet.ParquetFile(file)
            schema, batches = parquet.schema_arrow, parquet.iter_batches(batch_size=_ROWS)
        else:
            reader = pa.csv.open_csv(file) if kind == ".csv" else pa.json.open_json(file)
            schema, batches = reader.schema, iter(reader)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{store.url} cannot be read: {describe(error)}") from None
    if PATH_COLUMN not in schema.names:
        raise InputError(
            f"{store.url} has no column named {PATH_COLUMN}, only {', '.join(schema.names)}: "
            "rename the one that names the songs"
        )
    if clash := set(_OWN.names) & set(schema.names):
        raise InputError(f"{store.url}: the column {min(clash)} has a name that tfswa-sep uses: rename it")
    return pa.schema([field for field in schema if field.name != PATH_COLUMN]), batches


def _rows_of_manifest(batches: Iterator[pa.RecordBatch], store: Store) -> Iterator[dict[str, Any]]:
    home = posixpath.dirname(store.root)
    number = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                name = str(row.pop(PATH_COLUMN) or "").strip()
                if not name:
                    raise InputError(f"{store.url}: row {number} has no path")
                if "://" in name or posixpath.isabs(name):
                    parts = urlsplit(name)
                    folder = posixpath.dirname(f"{parts.netloc}{parts.path}").strip("/")
                    url = name
                else:
                    folder = posixpath.dirname(posixpath.normpath(name)).replace("../", "")
                    path = posixpath.normpath(posixpath.join(home, name))
                    url = path if store.is_local else store.fs.unstrip_protocol(path)
                yield {**row, **_row(url, "" if folder == ".." else folder, None, "")}
    except pa.ArrowException as error:
        raise InputError(f"{store.url}, after row {number}: {str(error).splitlines()[0]}") from None


def _row(url: str, folder: str, size: int | None, version: str) -> dict[str, Any]:
    name = posixpath.basename(urlsplit(url).path if "://" in url else url)
    return {
        "source": url,
        "folder": folder,
        "track": default_track_name(Path(name)),
        "size": size,
        "version": version,
    }


def _pieces(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    piece: list[dict[str, Any]] = []
    for row in rows:
        piece.append(row)
        if len(piece) == _ROWS:
            yield piece
            piece = []
    if piece:
        yield piece


def _target_key(folder: str, track: str) -> int:
    return key_of(file_system_key(Path(folder, track)))


def _repeated(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys that occur more than once, sorted."""
    values, counts = np.unique(keys, return_counts=True)
    repeated: NDArray[np.uint64] = values[counts > 1]
    return repeated


def is_in(key: int, keys: NDArray[np.uint64]) -> bool:
    """Whether a sorted array holds a key."""
    position = np.searchsorted(keys, np.uint64(key))
    return bool(position < len(keys) and keys[position] == key)
