"""Packages of the `eval` extra, which only some commands need."""

from __future__ import annotations

import importlib
from typing import Any

from tfswa_sep.errors import UsageError, install_command

_PROJECTS = {"PIL": "Pillow", "PIL.Image": "Pillow"}  # packages of another name


def need(package: str, purpose: str) -> Any:
    """The imported `package`.

    Raises:
        UsageError: It is not installed, or ffmpeg is missing; the message gives the command to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(
            f"{purpose} needs {_PROJECTS.get(package, package).partition('.')[0]}: {install_command(extra='eval')}"
        ) from None
    except RuntimeError as error:  # stempeg looks for ffmpeg as soon as it is imported
        raise UsageError(f"{purpose} needs ffmpeg and ffprobe on the PATH: {error}") from None


def render(template: str, purpose: str, **values: object) -> str:
    """Fill in one of the HTML templates of this package, with every value escaped.

    Raises:
        UsageError: jinja2 is not installed; `purpose` says what needs it.
    """
    jinja2 = need("jinja2", purpose)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfswa_sep.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return str(environment.get_template(template).render(values))
