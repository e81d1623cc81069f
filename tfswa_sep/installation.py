"""How this copy of tfswa-sep was installed, and thus which command adds a package to it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import sys
from pathlib import Path

_FFMPEG = {"darwin": "brew install ffmpeg", "win32": "winget install ffmpeg"}
_LINUX_INSTALLERS = {
    "apt-get": "sudo apt-get install ffmpeg",
    "dnf": "sudo dnf install ffmpeg-free",
    "pacman": "sudo pacman -S ffmpeg",
}


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
