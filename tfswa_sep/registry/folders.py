"""Where the package keeps its files, and whether it may use the network."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from platformdirs import PlatformDirs

# On Windows: no subfolder "Cache", and settings in the roaming profile.
_PLATFORM = PlatformDirs("tfswa-sep", appauthor=False, opinion=False, roaming=True)
_YES = {"1", "on", "yes", "true"}  # as huggingface_hub reads it


def cache_folder() -> Path:
    """The folder for downloads: TFSWA_CACHE, else tfswa-sep in the platform's cache folder."""
    if chosen := os.environ.get("TFSWA_CACHE"):
        return Path(os.path.expanduser(chosen))  # Path.expanduser raises for unknown users
    return _of_user("user_cache_dir", homeless=Path(tempfile.gettempdir(), ".cache"))


def hub_cache_folder() -> Path:
    """The folder for huggingface_hub's downloads: its own, or one in `cache_folder` if TFSWA_CACHE is set.

    Also the latter for a user without a home folder.
    """
    if os.environ.get("TFSWA_CACHE"):
        return cache_folder() / "huggingface"
    from huggingface_hub import constants  # fast to import, unlike the rest of the package

    chosen = os.path.expanduser(constants.HF_HUB_CACHE)
    return cache_folder() / "huggingface" if chosen.startswith("~") else Path(chosen)


def config_folder() -> Path:
    """The folder for the user's models.toml and pins: TFSWA_CONFIG, else the platform's settings folder."""
    if chosen := os.environ.get("TFSWA_CONFIG"):
        return Path(os.path.expanduser(chosen))
    # No settings without a home folder: in a shared folder, anybody could write them.
    return _of_user("user_config_dir", homeless=Path(os.devnull))


def data_folder() -> Path:
    """The folder for what must be kept: TFSWA_DATA, else tfswa-sep in the platform's data folder."""
    if chosen := os.environ.get("TFSWA_DATA"):
        return Path(os.path.expanduser(chosen))
    return _of_user("user_data_dir", homeless=Path(tempfile.gettempdir(), ".data"))


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, by the user or by --offline."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES


def _of_user(kind: str, *, homeless: Path) -> Path:
    """A platform folder, or one in `homeless` for a user without a home folder, as in some containers."""
    try:
        folder: str = getattr(_PLATFORM, kind)
    except RuntimeError:
        folder = "~"
    return homeless / "tfswa-sep" if folder.startswith("~") else Path(folder)
