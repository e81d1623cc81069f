"""Files under a temporary name, which get their own when they are whole; and folders for what is temporary.

A temporary file is locked as long as its writer lives. One that nobody holds was left by a process that was
killed; the next run that writes to the folder removes it. Windows needs no lock: it keeps an open file.
Temporary folders are locked and removed in the same way, except on Windows, where a folder cannot be locked.
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
    """An empty hidden file in `folder`, until it is put in place or removed. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        while True:
            self.path = folder / _PATTERN.replace("*", secrets.token_hex(6))
            self._handle: int | None = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            if sys.platform == "win32":
                self._unlock()  # there an open file cannot be renamed
                return
            with suppress(OSError):  # a file system may have no locks; then nothing is ever cleaned up there
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            if self.path.exists():
                return
            self._unlock()  # before it was locked, another run took it for a killed one's

    def commit(self, target: Path, *, overwrite: bool = True) -> None:
        """Give the file its name, over a file of an earlier run, or raise FileExistsError for one."""
        if overwrite or not self._linked(target):
            os.replace(self.path, target)
        self._unlock()

    def _linked(self, target: Path) -> bool:
        """Have the file its name without replacing another's, however late that came; False: it cannot be."""
        try:
            os.link(self.path, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
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
    """A path to write to, which becomes `target` at the end; an error before that leaves all as it was.

    Raises OSError.
    """
    temporary = AtomicFile(target.parent)
    try:
        yield temporary.path
        temporary.commit(target)
    finally:
        temporary.remove()


def write_text(target: Path, text: str) -> None:
    """Write a whole text file through to the disk, in UTF-8, over one that is there; or leave all as it was.

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
    """Do so the first time that this process writes below `folder`: in a large batch it would take time."""
    remove_abandoned_below(folder)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of one's own, removed at the end, among the system's temporary ones.

    Those that killed processes left there are removed first. Raises OSError.
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
            with suppress(OSError):  # without locks nothing is ever cleaned up there
                handle = os.open(folder, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            break
        if handle is not None:  # before it was locked, another run took it for a killed one's
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
    """Have the disk hold the names in a folder; not every system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
