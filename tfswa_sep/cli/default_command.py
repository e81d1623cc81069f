"""Commands that may be left out: `tfswa-sep song.mp3` and `tfswa-sep models`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class SeparateByDefault(TyperGroup):
    """A group whose command may be left out: what begins with a song or an option for it means `separate`."""

    fallback = "separate"
    alone = "--help"  # what is meant where nothing is said

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the fallback in front, unless a command or an option of this group stands there."""
        args = args or [self.alone]
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args[0] not in self.commands and args[0].partition("=")[0] not in own:
            args = [self.fallback, *args]
        return super().parse_args(ctx, args)


class RunByDefault(SeparateByDefault):
    """A group of which `run` is meant where no other command is named."""

    fallback = alone = "run"


class ListByDefault(SeparateByDefault):
    """A group of which `list` is meant where nothing is said."""

    fallback = alone = "list"
