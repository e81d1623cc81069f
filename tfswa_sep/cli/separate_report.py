"""What `tfswa-sep separate` prints about its songs: results line by line, and a table at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from tfswa_sep.batch.plan import Outcome
from tfswa_sep.cli.progress import clock
from tfswa_sep.cli.terminal import one_line, print_error, report_error, say


@dataclass(kw_only=True)
class SeparateReport:
    """Results go to stdout, warnings and errors to stderr."""

    count: int  # of songs
    as_json: bool
    quiet: bool
    verbose: bool
    debug: bool
    outcomes: list[Outcome] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)  # each warning is printed once

    @property
    def failed(self) -> int:
        """How many songs failed."""
        return sum(outcome.status == "failed" for outcome in self.outcomes)

    def add(self, outcome: Outcome) -> None:
        """Print the outcome of a song."""
        error = None
        if outcome.error is not None:
            error = report_error(outcome.error, debug=self.debug, trace=outcome.trace)
        for warning in outcome.warnings:
            if warning not in self.warned:
                print_error(f"note: {warning}")
            self.warned.add(warning)
        if self.as_json:
            document = outcome.as_json()
            say(json.dumps({**document, "error": error} if error else document))
        elif not self.quiet:
            self._print(outcome)
        self.outcomes.append(outcome)

    def _print(self, outcome: Outcome) -> None:
        result = outcome.result
        if outcome.status == "done" and not any(earlier.status == "done" for earlier in self.outcomes):
            backend = f"{result['backend']} {result['precision']}".strip()
            say(f"model {result['model']}, backend {backend}, device {result['device']}")
        if outcome.status == "skipped":
            name = one_line(outcome.song.name)
            say(f"already separated with these options (--overwrite redoes it): {name}")
        for file in outcome.files:
            say(file)
        if self.verbose and outcome.status == "done":
            say(f"{result['seconds']:.1f} s of audio took {outcome.took:.1f} s")

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
            name = Text(one_line(outcome.song.name))
            length = clock(outcome.result["seconds"]) if outcome.result else ""
            took = clock(outcome.took) if outcome.status == "done" else ""
            style = {"done": "green", "skipped": "", "failed": "bold red"}[outcome.status]
            table.add_row(name, Text(outcome.status, style=style), length, took)
        say()
        Console().print(table)
        counts = {status: sum(o.status == status for o in self.outcomes) for status in _STATUSES}
        say()
        say(", ".join(f"{number} {status}" for status, number in counts.items() if number))


_STATUSES = ("done", "skipped", "failed")
