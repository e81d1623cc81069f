"""Options that several commands share: one name, one type and one help text each."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME|FILE", help="A name that `models` lists, or a model file."),
]
BackendName = Annotated[
    Literal["auto", "onnx", "torch"],
    typer.Option(help="What computes; auto takes the fastest that is there."),
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Where: auto, cpu, cuda (or cuda:1, ...) or mps.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processor cores to use [default: all].")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs to read.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where in the program an error came up.")]
