"""The stems of a live session as FLAC files, written by a thread of its own."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from tfswa_sep.errors import OutputError, advice
from tfswa_sep.inference.overlap_add import Samples

SONG = "mixture"  # the file of what was heard
_WAITING = 4096  # hops that may wait for the disk


class Recorder:
    """Files `folder/<stem>.flac`, 24 bits, and `folder/mixture.flac`, as late as the stems.

    FLAC, because it has no limit on its length and can be read even if the program is killed.

    Raises:
        OutputError: The files exist, or cannot be written.
    """

    def __init__(self, folder: Path, stems: Sequence[str], rate: int, channels: int) -> None:
        self._folder = folder
        self.files = {name: folder / f"{name}.flac" for name in (*stems, SONG)}
        existing = [path for path in self.files.values() if path.exists()]
        if existing:
            raise OutputError(f"{existing[0]} exists: choose another folder")
        self._error: Exception | None = None
        self._opened: list[soundfile.SoundFile] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in self.files.values():
                self._opened.append(soundfile.SoundFile(path, "w", rate, channels, "PCM_24"))
        except (OSError, soundfile.SoundFileError) as error:
            self._error = error
            self._close_files()
            raise self._failure() from None
        self._queue: queue.Queue[Samples | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def write(self, song: Samples, stems: Samples) -> None:
        """Queue a hop: the song (c, n) and the stems (s, c, n). Raises OutputError if the disk has failed."""
        if self._error is not None:
            raise self._failure()
        try:
            self._queue.put_nowait(np.concatenate([stems, song[None]]))
        except queue.Full:
            self._error = OSError(0, "the disk is too slow")
            raise self._failure() from None

    def close(self) -> None:
        """Write what is queued, and close the files. Raises OutputError if not all could be written."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._failure()

    def _run(self) -> None:
        while (hop := self._queue.get()) is not None:
            if self._error is None:
                try:
                    for file, samples in zip(self._opened, hop, strict=True):
                        file.write(np.clip(samples.T, -1, 1))
                except (OSError, soundfile.SoundFileError) as error:
                    self._error = error
        self._close_files()

    def _close_files(self) -> None:
        for file in self._opened:
            try:
                file.close()
            except (OSError, soundfile.SoundFileError) as error:
                self._error = self._error or error

    def _failure(self) -> OutputError:
        error = self._error
        assert error is not None
        if isinstance(error, soundfile.LibsndfileError):  # gives no reason; usually the disk is full
            error = OSError(errno.ENOSPC, "the disk may be full")
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        return OutputError(f"cannot record to {self._folder} ({reason}): {advice(error)}")
