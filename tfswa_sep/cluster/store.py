"""Files anywhere that fsspec reaches: local folders, s3://, gs://, az://, https://, by their URLs.

A file that is put appears whole or not at all: object stores show an object only when its upload is complete; elsewhere
it is uploaded under a temporary name and then renamed. Every operation is retried when it fails in a way that may pass.
"""

from __future__ import annotations

import os
import posixpath
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tfswa_sep.errors import InputError, OutputError, TfswaError, UsageError, install_command

ATTEMPTS = 6  # per operation
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts, doubled each time
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, TfswaError, ImportError)
_ATOMIC = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "adl",
}  # where an object appears only when it is complete
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A file in a store.

    Attributes:
        url: Its address.
        size: Bytes; None if unknown.
        version: Changes when the file does: its ETag, or size and modification time; "" if unknown.
    """

    url: str
    size: int | None
    version: str


class Store:
    """A folder, bucket or prefix; files in it are named by paths relative to it.

    Args:
        url: A local path or a URL, such as s3://bucket/prefix.

    Raises:
        UsageError: The scheme is unknown, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.scheme = _scheme(url)
        try:
            # Listings are not cached: another process may have written since.
            options = {} if self.scheme == "file" else {"use_listings_cache": False}
            self.fs, self.root = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            package = _PACKAGES.get(self.scheme)
            advice = install_command(package) if package else str(error)
            raise UsageError(f"{url} needs another package: {advice}") from None
        except ValueError as error:
            raise UsageError(f"{url} cannot be opened: {error}") from None
        self.root = self.root.rstrip("/") or "/"
        self.url = self.fs.unstrip_protocol(self.root) if self.scheme != "file" else self.root

    @property
    def is_local(self) -> bool:
        """Whether this is a folder on this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of a file, as its file system names it."""
        return posixpath.join(self.root, name) if name else self.root

    def names_in(self, folder: str) -> set[str]:
        """The names of the files in a folder; none if it does not exist. Raises OutputError."""
        try:
            listed = retry(partial(self.fs.ls, self.path(folder), detail=False, **self._fresh))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except Exception as error:
            raise OutputError(f"{self.url}/{folder} cannot be listed: {describe(error)}") from None
        return {posixpath.basename(path.rstrip("/")) for path in listed}

    def read(self, name: str) -> bytes | None:
        """A small file's contents; None if it does not exist. Raises OutputError."""
        try:
            content: bytes = retry(partial(self.fs.cat_file, self.path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise OutputError(f"{self.url}/{name} cannot be read: {describe(error)}") from None
        return content

    def check_writable(self) -> None:
        """Write a file and remove it again. Raises OutputError."""
        name = f".{random.getrandbits(32):08x}.check"
        self.write(name, b"")
        self.remove(name)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all. Raises OutputError."""
        self._put(name, lambda path: self.fs.pipe_file(path, content))

    def put(self, file: Path, name: str) -> None:
        """Copy or link a local file into the store, whole or not at all. Raises OutputError."""

        def upload(path: str) -> None:
            if self.is_local:
                with suppress(OSError):  # it is on another file system, or that has no links
                    return os.link(file, path)
            self.fs.put_file(str(file), path)

        self._put(name, upload)

    def remove(self, name: str) -> None:
        """Remove a file if it exists. Raises OutputError."""
        try:
            retry(partial(self.fs.rm_file, self.path(name)))
        except FileNotFoundError:
            pass
        except Exception as error:
            raise OutputError(f"{self.url}/{name} cannot be removed: {describe(error)}") from None

    def abort_uploads(self, folder: str) -> None:
        """Discard what killed processes have uploaded of unfinished files in a folder. Only S3 keeps such parts."""
        if self.scheme not in ("s3", "s3a"):
            return
        bucket, key, _ = self.fs.split_path(self.path(folder))
        prefix = f"{key}/" if key else ""
        try:
            listed = retry(partial(self.fs.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=prefix))
            for upload in listed.get("Uploads", ()):
                what = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                retry(partial(self.fs.call_s3, "abort_multipart_upload", **what))
        except Exception as error:
            raise OutputError(f"{self.url}/{folder}: uploads cannot be aborted: {describe(error)}") from None

    @property
    def _fresh(self) -> dict[str, Any]:
        return {} if self.is_local else {"refresh": True}

    def _put(self, name: str, upload: Callable[[str], object]) -> None:
        path = self.path(name)
        atomic = self.scheme in _ATOMIC
        folder, base = posixpath.split(path)
        there = (
            path
            if atomic
            else posixpath.join(folder, f".{base}.{os.getpid()}-{random.getrandbits(32):08x}.part")
        )

        def attempt() -> None:
            if not atomic:
                self.fs.makedirs(folder, exist_ok=True)
            try:
                upload(there)
                if self.is_local:
                    os.replace(there, path)
                elif not atomic:
                    self.fs.mv(there, path)
            except BaseException:
                if not atomic and self.fs.exists(there):
                    self.fs.rm_file(there)
                raise

        try:
            retry(attempt)
        except Exception as error:
            raise OutputError(f"{self.url}/{name} cannot be written: {describe(error)}") from None


def fetch(url: str, file: Path, *, size: int | None) -> Entry:
    """Copy a file from any store to a local path, and return what is known of it.

    Args:
        url: The file's address.
        file: Where to.
        size: Its expected number of bytes; None if unknown.

    Raises:
        InputError: It does not exist, cannot be read, or is still incomplete after several attempts.
    """
    store = Store(url)

    def attempt() -> Entry:
        store.fs.get_file(store.root, str(file))
        entry = entry_of(url, store.fs.info(store.root))
        expected = entry.size if entry.size is not None else size
        if expected is not None and file.stat().st_size != expected:
            raise OSError(f"got {file.stat().st_size} of {expected} bytes")
        return entry

    try:
        return retry(attempt)
    except FileNotFoundError:
        raise InputError(f"{url}: no such file") from None
    except Exception as error:
        raise InputError(f"{url} cannot be read: {describe(error)}") from None


def entry_of(url: str, info: dict[str, Any]) -> Entry:
    """An Entry from what a file system says about a file."""
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    size = info.get("size")
    changed = (
        info.get("mtime") or info.get("LastModified") or info.get("updated") or info.get("last_modified")
    )
    version = etag or (f"{size}-{changed}" if changed else "")
    return Entry(url, None if size is None else int(size), version)


def walk(store: Store, *, recursive: bool = True) -> Iterator[Entry]:
    """All files below a store's root that are not hidden, folder by folder. Raises InputError."""
    try:
        found = (
            _pages(store, recursive=recursive)
            if store.scheme in ("s3", "s3a")
            else _folders(store, recursive)
        )
        yield from found
    except FileNotFoundError:
        raise InputError(f"{store.url}: no such folder") from None
    except TfswaError:
        raise
    except Exception as error:
        raise InputError(f"{store.url} cannot be listed: {describe(error)}") from None


def _folders(store: Store, recursive: bool) -> Iterator[Entry]:
    waiting = [store.root]
    while waiting:
        folder = waiting.pop()
        listed = sorted(retry(partial(store.fs.ls, folder, detail=True)), key=lambda info: str(info["name"]))
        below = []
        for info in listed:
            if posixpath.basename(info["name"].rstrip("/")).startswith("."):
                continue
            if info["type"] == "directory":
                below.append(info["name"])
            else:
                yield entry_of(_url(store, info["name"]), info)
        waiting += reversed(below) if recursive else ()


def _pages(store: Store, *, recursive: bool) -> Iterator[Entry]:
    """A thousand keys at a time: a bucket's listing need not fit into memory."""
    bucket, key, _ = store.fs.split_path(store.root)
    options: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
    if not recursive:
        options["Delimiter"] = "/"
    while True:
        page = retry(partial(store.fs.call_s3, "list_objects_v2", **options))
        for item in page.get("Contents", ()):
            below = item["Key"].removeprefix(options["Prefix"])
            if below and not below.endswith("/") and not any(part[:1] == "." for part in below.split("/")):
                yield Entry(f"{store.scheme}://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
        if not page.get("IsTruncated"):
            return
        options["ContinuationToken"] = page["NextContinuationToken"]


def _url(store: Store, path: str) -> str:
    return path if store.is_local else str(store.fs.unstrip_protocol(path))


def _scheme(url: str) -> str:
    scheme, mark, _ = url.partition("://")
    return scheme.lower() if mark else "file"


def retry(operation: Callable[[], T], *, attempts: int = ATTEMPTS) -> T:
    """Run an operation, and again after a growing pause if it fails in a way that may pass.

    Missing files and missing permissions are final. Raises what the last attempt raised.
    """
    for number in range(attempts):
        try:
            return operation()
        except _FINAL:
            raise
        except Exception:
            if number == attempts - 1:
                raise
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number)
            time.sleep(pause * random.uniform(0.5, 1))  # not all workers at the same moment
    raise AssertionError("unreachable")


def describe(error: BaseException) -> str:
    """One line about an error of a store."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    text = " ".join(str(reason).split())[:200]
    return text or type(error).__name__
