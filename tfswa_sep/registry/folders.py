"""Where files of ours lie on this machine, by its platform's custom, and whether the network may be used."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from platformdirs import PlatformDirs

# Not in a subfolder "Cache", nor apart on machines that a Windows profile roams to.
_PLATFORM = PlatformDirs("tfswa-sep", appauthor=False, opinion=False, roaming=True)
_YES = {"1", "on", "yes", "true"}  # what huggingface_hub takes for yes


def cache_folder() -> Path:
    """Where downloads are kept: TFSWA_CACHE, else tfswa-sep in the platform's folder for caches."""
    if chosen := os.environ.get("TFSWA_CACHE"):
        return Path(os.path.expanduser(chosen))  # a Path raises for users that are not there
    return _of_user("user_cache_dir", homeless=Path(tempfile.gettempdir(), ".cache"))


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
    # Without a home no settings: where all may write, they would be anybody's.
    return _of_user("user_config_dir", homeless=Path(os.devnull))


def is_offline() -> bool:
    """Whether the network is forbidden: --offline sets HF_HUB_OFFLINE, as the user's environment may."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES


def _of_user(kind: str, *, homeless: Path) -> Path:
    """A folder of the platform's, or one in `homeless` for a user without a home, as in some containers."""
    try:
        folder: str = getattr(_PLATFORM, kind)
    except RuntimeError:
        folder = "~"
    return homeless / "tfswa-sep" if folder.startswith("~") else Path(folder)
