"""Where files of ours lie on this machine, by its platform's custom, and whether the network may be used."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_YES = {"1", "on", "yes", "true"}  # what huggingface_hub takes for yes


def cache_folder() -> Path:
    """Where downloads are kept: TFSWA_CACHE, else tfswa-sep in the platform's folder for caches."""
    if chosen := os.environ.get("TFSWA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tfswa-sep"


def hub_cache_folder() -> Path:
    """Where huggingface_hub keeps its files: with ours if TFSWA_CACHE is set, else where it always does."""
    if os.environ.get("TFSWA_CACHE"):
        return cache_folder() / "huggingface"
    from huggingface_hub import constants  # light, unlike the rest of that package

    return Path(constants.HF_HUB_CACHE).expanduser()


def config_folder() -> Path:
    """Where the user's models.toml and pins are: TFSWA_CONFIG, else tfswa-sep in the folder for settings."""
    if chosen := os.environ.get("TFSWA_CONFIG"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "tfswa-sep"


def is_offline() -> bool:
    """Whether the network is forbidden: --offline sets HF_HUB_OFFLINE, as the user's environment may."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES
