"""Separate songs into vocals, drums, bass and other.

    import tfswa_sep

    tfswa_sep.separate("song.mp3", out="stems")      # a file to files, as the command does
    separator = tfswa_sep.Separator("small")         # loads the model once, for many songs
    stems = separator.separate(samples, rate=44100)  # (c, n) at full scale +-1 -> {"vocals": (c, n), ...}
    separator.save(stems, "stems")

Importing the package is fast: each name loads what it needs at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tfswa_sep.errors import TfswaError

if TYPE_CHECKING:
    from tfswa_sep.options import OutputOptions, Runtime
    from tfswa_sep.pipeline import SeparationResult
    from tfswa_sep.separator import LiveStream, Separator, Stems, load_model, separate

__version__ = "0.1.0"
__all__ = [
    "LiveStream", "OutputOptions", "Runtime", "SeparationResult", "Separator", "Stems", "TfswaError",
    "load_model", "separate",
]  # fmt: skip

_LAZY = {
    "LiveStream": "tfswa_sep.separator",
    "OutputOptions": "tfswa_sep.options",
    "Runtime": "tfswa_sep.options",
    "SeparationResult": "tfswa_sep.pipeline",
    "Separator": "tfswa_sep.separator",
    "Stems": "tfswa_sep.separator",
    "load_model": "tfswa_sep.separator",
    "separate": "tfswa_sep.separator",
}  # public name -> its module


def __getattr__(name: str) -> Any:
    """Import a public name at first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__version__", "errors"])
