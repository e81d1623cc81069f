"""Errors and their exit codes.

TfswaError            1  anything else
├── UsageError        2  an option or an argument makes no sense
├── InputError        3  a song is missing or cannot be decoded
│   └── TruncatedError   a song is truncated: --allow-truncated separates the rest
├── ModelError        4  a model is unknown, cannot be downloaded, or is damaged
├── OutputError       5  a stem cannot be written: permissions, disk, format
├── DeviceError       6  a backend or device is missing, or memory ran out
└── BatchError        7  some songs of a batch failed; the others are done

Interruptions have the shell's exit codes: 130 after Ctrl-C, 143 after SIGTERM. An error's message is one line that
says what is wrong, with which file, and what to do.
"""

from __future__ import annotations

import errno

_ADVICE = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "the disk is read-only, choose another folder",
    errno.ENOSPC: "free up space, or choose another folder",
    errno.EDQUOT: "free up space, or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another disk",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.E2BIG: "shorten the song's tags",  # which ffmpeg gets as arguments
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "a file is in the way, choose another name",
    errno.ENOTDIR: "a part of the path is a file, choose another folder",
    errno.EIO: "check the disk",
    errno.ETIMEDOUT: "check the disk, or the network drive",
}


class TfswaError(Exception):
    """Base of every error that tfswa-sep raises on purpose."""

    exit_code = 1


class UsageError(TfswaError):
    """An option or an argument makes no sense."""

    exit_code = 2


class InputError(TfswaError):
    """A song is missing or cannot be decoded."""

    exit_code = 3


class TruncatedError(InputError):
    """A song is truncated or damaged; the part before the damage can be decoded."""


class ModelError(TfswaError):
    """A model is unknown, cannot be downloaded, or is damaged."""

    exit_code = 4


class OutputError(TfswaError):
    """A stem cannot be written."""

    exit_code = 5


class DeviceError(TfswaError):
    """A backend or device is missing, or its memory ran out."""

    exit_code = 6


class BatchError(TfswaError):
    """Some songs of a batch failed; the others are done."""

    exit_code = 7


def advice(error: BaseException) -> str:
    """Advice for an operating-system error, as the end of a sentence."""
    return _ADVICE.get(getattr(error, "errno", None) or 0, "check the disk, or choose another folder")
