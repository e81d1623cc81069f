"""`tfswa-sep models`: list models, and download, verify and remove their files."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tfswa_sep.cli.default_command import ListByDefault
from tfswa_sep.cli.downloads import fetch_files, fetch_for_backend
from tfswa_sep.cli.help import HARDWARE, Command, option
from tfswa_sep.cli.shared_options import Debug, Json, Offline, Precision
from tfswa_sep.cli.terminal import print_tables, printable, say
from tfswa_sep.constants import VOCALS
from tfswa_sep.errors import ModelError

if TYPE_CHECKING:
    from rich.table import Table

    from tfswa_sep.registry import ModelFile, ModelInfo

_NOTES = (
    "RTF, real-time factor: seconds of computing per second of music, on 2 cores.",
    "vocals, mean: SDR in dB of the vocals and on average over the stems; * published by others for other songs, "
    "not measured by us.",
    "none stated: the publisher grants no licence for the weights; what you may do with them is unclear.",
    "More about a model: tfswa-sep models info MODEL",
)

app = typer.Typer(cls=ListByDefault, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="A model name, or an hf:// or https:// address.")]
Names = Annotated[list[str], typer.Argument(metavar="MODEL", help="Model names or addresses.")]


@app.callback()
def _models() -> None:
    """List, download, verify and remove models."""


@app.command("list", cls=Command)
def list_models(as_json: Json = False, debug: Debug = False) -> None:
    """List models with their stems, size, speed, scores and licences."""
    from tfswa_sep import registry

    models = registry.known_models()
    if as_json:
        say(json.dumps({"models": [asdict(model) for model in models]}, indent=2))
        return
    listed = [model for model in models if model.stems]
    print_tables(_table(listed))
    say()
    unknown = [model.name for model in listed if not registry.has_hashes(model)]
    notes = (
        [f"SHA-256 not published, recorded at the first download: {', '.join(unknown)}"] if unknown else []
    )
    for note in (*notes, *_NOTES):
        for line in textwrap.wrap(note, get_terminal_size().columns, subsequent_indent="  "):
            say(line)
    if others := [model for model in models if not model.stems]:
        say()
        say("Downloaded from addresses:")
        for model in others:
            say(f"  {model.name}")


@app.command("info", cls=Command)
def show_model(name: Name, offline: Offline = False, as_json: Json = False, debug: Debug = False) -> None:
    """Show one model and where its files are."""
    from tfswa_sep import registry

    model = registry.find_model(name)
    files = [_state(file) for file in model.files]
    if as_json:
        say(json.dumps({**asdict(model), "files": files}, indent=2))
        return
    _print_model(model)
    for file in files:
        say()
        say(f"  {_kind(file)}: {file['state']}")
        for label in ("where", "path", "sha256"):
            if file[label]:
                say(f"    {label:<7} {file[label]}")


@app.command("path", cls=Command)
def model_path(
    name: Name,
    backend: Annotated[Literal["onnx", "torch"], option(HARDWARE, "Backend of the file.")] = "onnx",
    precision: Precision = "fp32",
    offline: Offline = False,
    debug: Debug = False,
) -> None:
    """Print the path of each file of a model, downloading it if needed."""
    from tfswa_sep import registry

    info = registry.with_precision(registry.find_model(name), precision)
    for path in fetch_for_backend(info, backend, shown=True):
        say(str(path))


@app.command("pull", cls=Command)
def pull_models(
    names: Names,
    backend: Annotated[Literal["all", "onnx", "torch"], typer.Option(help="Files to download.")] = "all",
    offline: Offline = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Download models for offline use.

    A download that is cut off or stopped with Ctrl-C resumes the next time.
    """
    from tfswa_sep import registry

    pulled = []
    for name in names:
        model = registry.find_model(name)
        wanted = [i for i, file in enumerate(model.files) if backend in ("all", file.backend)]
        if not wanted:
            registry.fetch(model, backend)  # raises an error that names the available backends
        paths = fetch_files(model, [model.files[i] for i in wanted], shown=not as_json)
        for i, _ in zip(wanted, paths, strict=True):
            known = registry.find_model(name).files[i]  # the hash of an address is recorded by now
            pulled.append({"model": model.name, **_state(known)})
            if not as_json:
                say(pulled[-1]["path"])
                say(f"  {_kind(pulled[-1])}, sha256 {pulled[-1]['sha256']}")
    if as_json:
        say(json.dumps({"files": pulled}, indent=2))


@app.command("verify", cls=Command)
def verify_models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Models to verify.  [default: all on this machine]"),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check local model files against their recorded SHA-256.

    Exits with code 4 if a file is damaged.
    """
    from tfswa_sep import registry

    models = [registry.find_model(name) for name in names] if names else registry.known_models()
    files = [{"model": model.name, **_state(file)} for model in models for file in model.files]
    files = [file for file in files if names or file["path"]]
    if as_json:
        say(json.dumps({"files": files}, indent=2))
    else:
        for file in files:
            say(f"{file['model']}, {_kind(file)}: {file['state']}")
    if damaged := [file["path"] for file in files if file["damaged"]]:
        raise ModelError(f"damaged: {', '.join(damaged)} (download again: tfswa-sep models pull)")


@app.command("rm", cls=Command)
def remove_models(names: Names, debug: Debug = False) -> None:
    """Delete downloaded models.

    For an address, the recorded hash is deleted too, so its next download is trusted again.
    """
    from tfswa_sep import registry

    for name in names:
        removed = registry.remove(name)
        for path in removed:
            say(str(path))
        if not removed:
            say(f"{name}: nothing to delete")


def _kind(file: dict[str, Any]) -> str:
    return f"{file['backend']} {file['precision']}".strip()


def _state(file: ModelFile) -> dict[str, Any]:
    """A model's file as an object for JSON, with its state on this machine."""
    from tfswa_sep import registry

    path: Path = registry.local_path(file)
    exists = os.path.exists(path)  # a Path raises for a folder that may not be read
    problem = registry.problem_of(file) if exists else None
    state = "not downloaded" if not exists else f"damaged: it {problem}" if problem else "ok"
    return {
        **asdict(file),
        "where": printable(file.where),
        "path": str(path) if exists else "",
        "state": state,
        "damaged": problem is not None,
    }


def _table(models: Sequence[ModelInfo]) -> Table:
    """Registered models, one per row."""
    from rich.table import Table
    from rich.text import Text

    from tfswa_sep.registry import MEAN

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("stems", min_width=14)  # vocals, drums,
    for heading in ("size", "RTF", "vocals", "mean"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    for model in models:
        cells = (
            f"{model.name} (default)" if model.default else model.name,
            ", ".join(model.stems),
            _size(model),
            f"{model.real_time_factor:.2f}" if model.real_time_factor else "",
            _score(model, VOCALS),
            _score(model, MEAN),
            model.license,
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _size(model: ModelInfo) -> str:
    from tfswa_sep import registry

    sizes = [file.bytes for file in registry.files_for(model, model.files[0].backend)]
    return f"{sum(sizes) / 1e6:.0f} MB" if all(sizes) else "?"


def _score(model: ModelInfo, stem: str) -> str:
    """An SDR of ours or, with an asterisk, one that others published."""
    from statistics import fmean

    from tfswa_sep.registry import MEAN

    ours = model.scores | ({MEAN: fmean(model.scores.values())} if model.scores else {})
    if stem in ours:
        return f"{ours[stem]:.1f} "
    return f"{model.published[stem]:.1f}*" if stem in model.published else ""


def _print_model(model: ModelInfo) -> None:
    from tfswa_sep import registry

    say(f"{model.name}{' (default)' if model.default else ''}")
    for label, text in registry.describe(model):
        for line in textwrap.wrap(text, 80, initial_indent=f"  {label:<9} ", subsequent_indent=" " * 12):
            say(line)
