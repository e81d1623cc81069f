"""`tfswa-sep serve`: the page and the REST API."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Annotated

import typer

from tfswa_sep.cli.shared_options import Debug, Model, Offline, Quiet, with_options
from tfswa_sep.cli.terminal import say
from tfswa_sep.errors import UsageError, install_command
from tfswa_sep.options import Runtime, ServeOptions

_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")

NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")]


@with_options
def serve(
    options: ServeOptions = ServeOptions(),
    no_browser: NoBrowser = False,
    model: Model = None,
    runtime: Runtime = Runtime(),
    offline: Offline = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve a page that separates songs, and a REST API.

    Only this machine can reach it unless --host says otherwise. Nothing leaves the machine.
    """
    from tfswa_sep.cli.diagnostics import SERVER_PACKAGES

    if any(importlib.util.find_spec(package) is None for package in SERVER_PACKAGES):
        raise UsageError(f"the server needs more packages: {install_command(extra='serve')}")
    if model:
        from tfswa_sep import registry

        registry.find_model(model)  # an unknown one fails here
    from tfswa_sep.server.app import serve as run

    def announce(address: str) -> None:
        if not quiet:
            if options.no_auth and not options.is_local:
                say("WARNING: anyone who can reach this address may use the server (--no-auth)")
            say(f"The page is at {address} (press Ctrl-C to stop)")
        if not no_browser and _has_browser():
            import webbrowser

            webbrowser.open(address)

    run(options, runtime, model or "", on_ready=announce)


def _has_browser() -> bool:
    """Whether a browser can open a window; without a display, one might open in the terminal."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in _DISPLAYS)
