"""`tfswa-sep doctor`: check what works on this machine and what to install."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

import typer

from tfswa_sep.cli.shared_options import Debug, Json


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Check what works on this machine, and how fast.

    Separates a 5-second clip with each backend and prints the command that installs anything missing.
    Exits with code 0 if separation works.
    """
    from tfswa_sep.cli.diagnostics import examine, works

    findings = []
    for finding in examine():
        findings.append(finding)
        if as_json:
            continue
        mark = "ok" if finding.right and not finding.install else "--" if finding.right else "NO"
        start = f"{mark}  {finding.about:<15}  "
        print(textwrap.fill(finding.text, 80, initial_indent=start, subsequent_indent=" " * 21), flush=True)
        if finding.install:
            print(f"{'':<21}{finding.install}")
    code = works(findings)
    if as_json:
        print(
            json.dumps({"works": code == 0, "findings": [asdict(finding) for finding in findings]}, indent=2)
        )
    elif code:
        print("\nSeparation does not work on this machine.")
    else:
        print("\nSeparation works.")
    raise typer.Exit(code)
