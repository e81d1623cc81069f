"""Files that are renamed to their targets once they are complete, and temporary folders.

A temporary file is locked while its writer lives. An unlocked one was left by a process that was killed; the next run
that writes to the folder removes it. Windows needs no lock, since it refuses to delete an open file. Temporary folders
are locked and removed in the same way, except on Windows, where a folder cannot be locked.
"""

from __future__ import annotations

import errno
import functools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PATTERN = ".tfswa-sep-*.tmp"


class AtomicFile:
    """An empty hidden file in `folder`, until it is renamed or removed. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        while True:
            self.path = folder / _PATTERN.replace("*", secrets.token_hex(6))
            self._handle: int | None = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            if sys.platform == "win32":
                self._unlock()  # an open file cannot be renamed there
                return
            with suppress(OSError):  # some file systems have no locks; nothing is cleaned up there
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            if self.path.exists():
                return
            self._unlock()  # another run removed it as abandoned before it was locked

    def commit(self, target: Path, *, overwrite: bool = True) -> None:
        """Rename the file to `target`; raise FileExistsError if that exists, unless it may be overwritten."""
        if overwrite or not self._linked(target):
            os.replace(self.path, target)
        self._unlock()

    def _linked(self, target: Path) -> bool:
        """Rename the file without ever replacing another; False if the file system cannot."""
        try:
            os.link(self.path, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            return False
        self.path.unlink()
        return True

    def remove(self) -> None:
        """Remove the file if it is still there."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` at the end; an error leaves everything as it was.

    Raises OSError.
    """
    temporary = AtomicFile(target.parent)
    try:
        yield temporary.path
        temporary.commit(target)
    finally:
        temporary.remove()


def write_text(target: Path, text: str) -> None:
    """Write a text file in UTF-8, replacing an existing one, and flush it to the disk; or leave everything as it was.

    Raises OSError.
    """
    with (
        atomic_write(target) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape") as file,
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files in `folder` whose writer was killed."""
    for path in folder.glob(_PATTERN):
        with suppress(OSError):
            if sys.platform == "win32":
                path.unlink()
                continue
            handle = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


def remove_abandoned_below(folder: Path) -> None:
    """Remove temporary files in `folder`, and in the folders directly in it, whose writer was killed."""
    remove_abandoned(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_abandoned(Path(entry.path))


@functools.cache
def remove_abandoned_once(folder: Path) -> None:
    """remove_abandoned_below, but only once per folder and process: a large batch would repeat it for each song."""
    remove_abandoned_below(folder)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder in the system's temporary directory, removed at the end.

    Folders left there by killed processes are removed first. Raises OSError.
    """
    prefix, suffix = _PATTERN.split("*")
    handle = None
    if sys.platform != "win32":
        for path in Path(tempfile.gettempdir()).glob(_PATTERN):
            with suppress(OSError):
                _remove_unlocked_folder(path)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix))
        if sys.platform != "win32":
            with suppress(OSError):  # without locks nothing is cleaned up there
                handle = os.open(folder, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            break
        if handle is not None:  # another run removed it as abandoned before it was locked
            os.close(handle)
            handle = None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _remove_unlocked_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system supports it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
