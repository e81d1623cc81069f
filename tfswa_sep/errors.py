"""Errors, their exit codes, and the advice in their messages.

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
import importlib.util
import re
import shutil
import sys
from pathlib import Path

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
_FFMPEG = {"darwin": "brew install ffmpeg", "win32": "winget install ffmpeg"}
_LINUX_INSTALLERS = {
    "apt-get": "sudo apt-get install ffmpeg",
    "dnf": "sudo dnf install ffmpeg-free",
    "pacman": "sudo pacman -S ffmpeg",
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


def install_command(*packages: str, extra: str = "", index: str | None = None) -> str:
    """The command that installs packages next to tfswa-sep: pip's, or that of pipx or uv if they installed it.

    Args:
        packages: Requirements, such as "torch>=2.11".
        extra: An extra of tfswa-sep, whose packages are added.
        index: An additional package index.
    """
    requirements = [*packages, *(_extra_requirements(extra) if extra else ())]
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        options = [f"--pip-args=--extra-index-url {index}"] if index else []
        return _join(["pipx", "inject", prefix.name, *requirements, *options])
    options = ["--extra-index-url", index] if index else []
    if (prefix / "uv-receipt.toml").is_file() or (not _has_pip() and shutil.which("uv")):
        return _join(["uv", "pip", "install", "--python", sys.executable, *requirements, *options])
    if extra and not packages:  # shorter, and pip finds the rest of tfswa-sep installed
        requirements = [f"tfswa-sep[{extra}]"]
    return _join([*_pip(), "install", *requirements, *options])


def ffmpeg_install_command() -> str:
    """The command that installs ffmpeg: from the system's package manager, else the imageio-ffmpeg package."""
    line = _FFMPEG.get(sys.platform) or next(
        (line for tool, line in _LINUX_INSTALLERS.items() if shutil.which(tool)), ""
    )
    return line or install_command("imageio-ffmpeg")


def _extra_requirements(extra: str) -> list[str]:
    import importlib.metadata  # takes longer than the rest of --help's imports

    try:
        lines = importlib.metadata.requires("tfswa-sep") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        lines = []
    of_extra = [line for line in lines if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", line)]
    return [re.split(r"[;\s]", line)[0] for line in of_extra] or [f"tfswa-sep[{extra}]"]


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _pip() -> list[str]:
    """pip as the shell would find it, if it belongs to this Python."""
    found = shutil.which("pip")
    is_ours = found is not None and Path(found).parent == Path(sys.executable).parent
    return ["pip"] if is_ours else [sys.executable, "-m", "pip"]


def _join(words: list[str]) -> str:
    """Join words to a command line for any shell, including Windows': in double quotes where needed."""
    return " ".join(word if re.fullmatch(r"[\w@%+=:,./\\-]+", word) else f'"{word}"' for word in words)
