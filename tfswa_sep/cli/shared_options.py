"""Options that several commands share: one name, one type and one help text each."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer


def _go_offline(wanted: bool) -> bool:
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"  # heeded by the registry and by huggingface_hub
    return wanted


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A name that `models` lists, a model file, or an hf:// or https:// address.",
    ),
]
BackendName = Annotated[
    Literal["auto", "onnx", "torch"],
    typer.Option(help="What computes; auto takes the fastest that is there."),
]
Precision = Annotated[
    Literal["fp32", "int8", "auto"],
    typer.Option(
        help="auto is the fastest that this machine is made for: int8 (onnx), 16 bits (torch) or fp32."
    ),
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Where: auto, cpu, cuda (or cuda:1, ...), mps or coreml.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processor cores to use [default: all].")
]
Offline = Annotated[
    bool, typer.Option("--offline", callback=_go_offline, help="Fetch nothing: take what is here, or fail.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs to read.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where in the program an error came up.")]
