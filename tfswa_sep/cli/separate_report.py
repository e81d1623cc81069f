"""What `tfswa-sep separate` tells of its songs: line by line, and as a table at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from tfswa_sep.batch.plan import Outcome
from tfswa_sep.cli import terminal


@dataclass(kw_only=True)
class SeparateReport:
    """Results go to stdout, warnings and errors to stderr."""

    count: int  # of songs
    as_json: bool
    quiet: bool
    verbose: bool
    debug: bool
    outcomes: list[Outcome] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)  # warnings, each of which is told once

    @property
    def failed(self) -> int:
        """How many songs failed."""
        return sum(outcome.status == "failed" for outcome in self.outcomes)

    def add(self, outcome: Outcome) -> None:
        """Say what became of a song."""
        error = None
        if outcome.error is not None:
            error = terminal.report(outcome.error, debug=self.debug, trace=outcome.trace)
        if not self.quiet:
            for warning in outcome.warnings:
                if warning not in self.shown:
                    terminal.print_error(f"note: {warning}")
                self.shown.add(warning)
        if self.as_json:
            told = outcome.as_json()
            print(json.dumps({**told, "error": error} if error else told), flush=True)
        elif not self.quiet:
            self._print(outcome)
        self.outcomes.append(outcome)

    def _print(self, outcome: Outcome) -> None:
        result = outcome.result
        if outcome.status == "done" and not any(earlier.status == "done" for earlier in self.outcomes):
            backend = f"{result['backend']} {result['precision']}".strip()
            print(f"model {result['model']}, backend {backend}, device {result['device']}")
        if outcome.status == "skipped":
            print(
                f"{outcome.song.name} is already separated with these options (use --overwrite to redo it):"
            )
        if outcome.files:
            print(*outcome.files, sep="\n", flush=True)
        if self.verbose and outcome.status == "done":
            print(f"{result['seconds']:.1f} s of audio took {outcome.took:.1f} s", flush=True)

    def print_summary(self) -> None:
        """Print the table of several songs."""
        if self.quiet or self.as_json or self.count < 2:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("song", overflow="fold", ratio=1)
        table.add_column("result")
        table.add_column("length", justify="right")
        table.add_column("took", justify="right")
        for outcome in self.outcomes:
            name = Text(terminal.one_line(outcome.song.name))
            length = _clock(outcome.result["seconds"]) if outcome.result else ""
            took = _clock(outcome.took) if outcome.status == "done" else ""
            style = {"done": "green", "skipped": "", "failed": "bold red"}[outcome.status]
            table.add_row(name, Text(outcome.status, style=style), length, took)
        print()
        Console().print(table)
        counts = {status: sum(o.status == status for o in self.outcomes) for status in _STATUSES}
        print()
        print(", ".join(f"{number} {status}" for status, number in counts.items() if number), flush=True)


_STATUSES = ("done", "skipped", "failed")


def _clock(seconds: float) -> str:
    """1:02:03, 2:03 or 3.4 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
