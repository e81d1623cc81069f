"""Packages of the `eval` extra, which only some numbers need."""

from __future__ import annotations

import importlib
from typing import Any

from tfswa_sep.errors import UsageError


def need(package: str, purpose: str) -> Any:
    """The imported `package`. Raises UsageError, with the line to type, where it or ffmpeg is missing."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(f'{purpose} needs {package}. Type: pip install "tfswa-sep[eval]"') from None
    except RuntimeError as error:  # stempeg looks for ffmpeg as soon as it is imported
        raise UsageError(f"{purpose} needs ffmpeg and ffprobe on the PATH: {error}") from None
