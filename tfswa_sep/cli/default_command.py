"""Commands that may be left out: `tfswa-sep song.mp3` and `tfswa-sep models`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperGroup


class SeparateByDefault(TyperGroup):
    """A group whose command may be left out: arguments that begin with a song or an option mean `separate`."""

    fallback = "separate"
    alone = "--help"  # what no arguments at all mean

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the default command, unless the arguments begin with a command or an option of this group."""
        args = _protect_file_names(args) or [self.alone]
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args[0] not in self.commands and args[0].partition("=")[0] not in own:
            args = [self.fallback, *args]
        return super().parse_args(ctx, args)


class RunByDefault(SeparateByDefault):
    """A group where `run` may be left out."""

    fallback = alone = "run"


class ListByDefault(SeparateByDefault):
    """A group where no arguments mean `list`."""

    fallback = alone = "list"


def _protect_file_names(arguments: Sequence[str]) -> list[str]:
    """Rewrite file names that begin with a dash as ./-name, so that they are not mistaken for options."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [
        f"./{argument}" if number < end and _is_file_with_dash(argument) else argument
        for number, argument in enumerate(arguments)
    ]


def _is_file_with_dash(argument: str) -> bool:
    return (
        argument.startswith("-")
        and "=" not in argument
        and bool(Path(argument).suffix)
        and os.path.lexists(argument)
    )
