"""`tfswa-sep doctor`: check what works on this machine and what to install."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from tfswa_sep.cli.shared_options import Debug, Json
from tfswa_sep.cli.terminal import say

if TYPE_CHECKING:
    from tfswa_sep.cli.diagnostics import Finding


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Check what works on this machine, and how fast.

    Separates a 5-second clip with each backend and prints the command that installs anything missing.
    Exits with code 0 if separation works.
    """
    from tfswa_sep.cli.diagnostics import examine, works

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    code = works(findings)
    if as_json:
        document = {"works": code == 0, "findings": [asdict(finding) for finding in findings]}
        say(json.dumps(document, indent=2))
    else:
        say()
        say("Separation does not work on this machine." if code else "Separation works.")
    raise typer.Exit(code)


def _print_finding(finding: Finding) -> None:
    optional = finding.optional or (finding.right and finding.install)
    mark = "--" if optional else "ok" if finding.right else "NO"
    start = f"{mark}  {finding.about:<15}  "
    for line in textwrap.wrap(finding.text, 80, initial_indent=start, subsequent_indent=" " * len(start)):
        say(line)
    if finding.install:
        say(f"{'':<{len(start)}}{finding.install}")
