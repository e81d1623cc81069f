"""`tfswa-sep models`: what models there are, and where their files lie."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from tfswa_sep.command_groups import ListFirst
from tfswa_sep.options import Debug, Json

app = typer.Typer(cls=ListFirst, rich_markup_mode=None)


@app.callback()
def _models() -> None:
    """See what models there are, and where their files lie."""


@app.command("list")
def list_models(as_json: Json = False, debug: Debug = False) -> None:
    """List the models: what they separate, how well, and on what terms."""
    from tfswa_sep import registry

    models = registry.load_registry().values()
    if as_json:
        print(json.dumps({"models": [asdict(model) for model in models]}, indent=2))
        return
    for model in models:
        print(f"{model.name}{' (the default)' if model.default else ''}")
        for label, text in registry.describe(model):
            print(textwrap.fill(text, 80, initial_indent=f"  {label:<9} ", subsequent_indent=" " * 12))


@app.command("path")
def model_path(
    name: Annotated[str, typer.Argument(help="A name that `models` lists.")],
    backend: Annotated[Literal["onnx", "torch"], typer.Option(help="Which of the model's files.")] = "onnx",
    debug: Debug = False,
) -> None:
    """Show where a model's file lies; it is fetched if it has to be, and checked."""
    from tfswa_sep import registry

    print(registry.fetch(registry.find_model(name), backend))
