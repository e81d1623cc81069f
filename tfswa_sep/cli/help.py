"""Help pages: options in groups, and arguments as people write them."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand

STEMS, INPUT, OUTPUT, BATCH = "Stems", "Input", "Output files", "Several songs"
HARDWARE, MESSAGES = "Model and hardware", "Messages and help"  # titles of groups of options
SONGS, METHODS, RESULTS = "Songs", "Methods", "Scores and results"
ADDRESS, LIMITS = "Address and access", "Limits"
_CLEAR_WITHOUT = re.compile(
    r"  \[required\]|  \[[\d<=]*x[<>=\d]*\]|; [\d<=]*x[<>=\d]*(?=\])"
)  # required; ranges


def option(group: str, text: str, *names: str, **details: Any) -> Any:
    """An option of a group on the help page, with its text, its names if not the parameter's, and typer's details."""
    return typer.Option(*names, help=text, rich_help_panel=group, **details)


class Command(TyperCommand):
    """A command whose options are grouped by their rich_help_panel, which typer itself does only with rich."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """SONG... in place of {SONG}..."""
        return [
            piece.translate({ord("{"): None, ord("}"): None}) for piece in super().collect_usage_pieces(ctx)
        ]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the groups, each with the same columns."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name, text = record[0], _CLEAR_WITHOUT.sub("", record[1])
            title = getattr(parameter, "rich_help_panel", None) or "Options"
            if parameter.param_type_name == "argument":
                name, title = parameter.metavar or parameter.name, "Arguments"
            groups.setdefault(title, []).append((name, text))
        arguments, rest = groups.pop("Arguments", []), groups.pop("Options", [])  # the rest includes --help
        if len(groups) > 1:
            groups[MESSAGES] = groups.pop(MESSAGES, []) + rest
        else:
            groups = {"Options": rest[:-1] + groups.get(MESSAGES, []) + rest[-1:]}
        width = min(max(len(name) for records in groups.values() for name, _ in records), 29)
        for title, records in {"Arguments": arguments, **groups}.items():
            if records:
                (name, text), *others = records
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), text), *others])
