"""Where files of ours lie on this machine, by its platform's custom, and whether the network may be used."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

_YES = {"1", "on", "yes", "true"}  # what huggingface_hub takes for yes


def cache_folder() -> Path:
    """Where downloads are kept: TFSWA_CACHE, else tfswa-sep in the platform's folder for caches."""
    if chosen := os.environ.get("TFSWA_CACHE"):
        return Path(os.path.expanduser(chosen))  # a Path raises for users that are not there
    return _of_platform(mac="Caches", windows=("LOCALAPPDATA", "Local"), others=("XDG_CACHE_HOME", ".cache"))


def hub_cache_folder() -> Path:
    """Where huggingface_hub keeps its files: with ours if TFSWA_CACHE is set, else where it always does.

    With ours, too, for a user without a home folder.
    """
    if os.environ.get("TFSWA_CACHE"):
        return cache_folder() / "huggingface"
    from huggingface_hub import constants  # light, unlike the rest of that package

    chosen = os.path.expanduser(constants.HF_HUB_CACHE)
    return cache_folder() / "huggingface" if chosen.startswith("~") else Path(chosen)


def config_folder() -> Path:
    """Where the user's models.toml and pins are: TFSWA_CONFIG, else tfswa-sep in the folder for settings."""
    if chosen := os.environ.get("TFSWA_CONFIG"):
        return Path(os.path.expanduser(chosen))
    return _of_platform(
        mac="Application Support",
        windows=("APPDATA", "Roaming"),
        others=("XDG_CONFIG_HOME", ".config"),
        homeless=os.devnull,  # no settings: where all may write, they would be anybody's
    )


def is_offline() -> bool:
    """Whether the network is forbidden: --offline sets HF_HUB_OFFLINE, as the user's environment may."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES


def _of_platform(
    *, mac: str, windows: tuple[str, str], others: tuple[str, str], homeless: str | None = None
) -> Path:
    """tfswa-sep in the platform's folder: an environment variable that names it, and where it is without.

    homeless: for a user without a home folder, as in some containers; None: the folder for temporary files.
    """
    home = Path(os.path.expanduser("~"))  # Path.home raises where there is none
    if home == Path("~"):
        home = Path(homeless or tempfile.gettempdir())
    if sys.platform == "darwin":
        base = home / "Library" / mac
    elif sys.platform == "win32":
        base = Path(os.environ.get(windows[0]) or home / "AppData" / windows[1])
    else:
        base = Path(os.environ.get(others[0]) or home / others[1])
    return base / "tfswa-sep"
