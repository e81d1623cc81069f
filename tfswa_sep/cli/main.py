"""The command line: all commands together.

Results go to stdout, with --json as one JSON object; progress, warnings and the one line of an error go to
stderr. Only tfswa_sep.cli prints or exits. Nothing heavy is imported before it is needed, so that --help, an
unknown model and a missing song are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
import typer.main

import tfswa_sep
from tfswa_sep.cli import batch, doctor, evaluate, live, models, separate, serve, terminal
from tfswa_sep.cli.default_command import SeparateByDefault
from tfswa_sep.cli.help import Command
from tfswa_sep.cli.terminal import PROGRAM

EXAMPLES = f"""Examples:

\b
  {PROGRAM} song.mp3                          four stems in the folder song/
  {PROGRAM} song.mp3 --stems vocals           vocals only
  {PROGRAM} song.mp3 --stems vocals,accompaniment
                                              vocals and everything else
  {PROGRAM} *.flac --out stems --format flac  many songs, as FLAC
"""


# Without rich's markup: its import takes 0.2 s, more than all the rest of --help.
app = typer.Typer(
    name=PROGRAM,
    cls=SeparateByDefault,
    subcommand_metavar="SONG... | COMMAND",
    epilog=EXAMPLES + f"\nAll options: {PROGRAM} separate --help",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command(cls=Command, epilog=EXAMPLES)(separate.separate)
app.add_typer(models.app, name="models")
app.add_typer(evaluate.app, name="eval")
app.command("batch", cls=Command)(batch.batch)
app.command("serve", cls=Command)(serve.serve)
app.add_typer(live.app, name="live")
app.command("doctor", cls=Command)(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(PROGRAM, tfswa_sep.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Separate songs into vocals, drums, bass and other.

    Stems are written to a folder named after the song. Works offline and without a GPU.
    """


def main() -> None:
    """The `tfswa-sep` command: run the process's arguments, and exit with the right code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; no failure raises."""
    command = typer.main.get_command(app)
    return terminal.run(
        lambda: command.main(list(arguments), prog_name=PROGRAM, standalone_mode=False),
        debug="--debug" in arguments,
        as_json="--json" in arguments
        and (arguments[0] != "eval" or arguments[1:2] == ["compare"]),  # --json of `eval run` takes a file
    )
