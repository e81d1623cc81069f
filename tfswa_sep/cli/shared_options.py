"""Options of the command line that several commands share: one name, one type and one help text each.

A command takes the fields of OutputOptions or Runtime by one parameter: see `with_options`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from tfswa_sep.options import OutputOptions, Runtime


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
Precision = Annotated[
    Literal["fp32", "int8", "auto"],
    typer.Option(
        help="auto is the fastest that this machine is made for: int8 (onnx), 16 bits (torch) or fp32."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", callback=_go_offline, help="Fetch nothing: take what is here, or fail.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs to read.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something is wrong.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where in the program an error came up.")]

_FIELDS: dict[str, Any] = {  # of Runtime and OutputOptions that can be chosen on the command line
    "backend": Annotated[
        Literal["auto", "onnx", "torch"],
        typer.Option(help="What computes; auto takes the fastest that is there."),
    ],
    "device": Annotated[
        str, typer.Option(metavar="DEVICE", help="Where: auto, cpu, cuda (or cuda:1, ...), mps or coreml.")
    ],
    "precision": Precision,
    "threads": Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processor cores to use [default: all].")
    ],
    "shifts": Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Average N passes at different offsets: slightly better, N times slower."
        ),
    ],
    "stems": Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="vocals, drums, bass, other, accompaniment (all but the vocals) or a sum such as "
            "drums+bass; several with commas [default: all four].",
        ),
    ],
    "out": Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the stems go.")],
    "name": Annotated[str, typer.Option(metavar="PATTERN", help="Names of the files under --out.")],
    "audio_format": Annotated[
        Literal["wav", "flac", "mp3", "ogg", "opus", "m4a"],
        typer.Option("--format", metavar="KIND", help="wav, flac, mp3, ogg, opus or m4a."),
    ],
    "bit_depth": Annotated[
        Literal["16", "24", "32f"] | None,
        typer.Option(help="Bits a sample; 32f cannot clip [default: 32f, and 24 for flac]."),
    ],
    "bitrate": Annotated[
        int | None,
        typer.Option(
            metavar="KBIT/S", help="Of mp3, ogg, opus, m4a [default: mp3 320, ogg 256, opus 192, m4a 256]."
        ),
    ],
    "rescale": Annotated[
        bool,
        typer.Option("--rescale", help="Where a stem would clip, turn all stems of the song down alike."),
    ],
    "exact_sum": Annotated[
        bool,
        typer.Option("--exact-sum", help="Have the stems add up to the song exactly: the last gives way."),
    ],
    "stem_file": Annotated[
        bool, typer.Option("--stem-file", help="Write SONG.stem.mp4 too, for Traktor and the like.")
    ],
    "downmix": Annotated[bool, typer.Option("--downmix", help="Mix surround sound down to stereo.")],
    "allow_truncated": Annotated[
        bool, typer.Option("--allow-truncated", help="Take what is there of a song that is cut short.")
    ],
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of `command` that is a Runtime or OutputOptions by one option per field.

    The parameter's default gives theirs. Typer reads what it offers from the signature, so that is rewritten.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, list[str]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if kind not in (OutputOptions, Runtime):
            parameters.append(parameter.replace(annotation=kind))
            continue
        groups[parameter.name] = [field.name for field in fields(kind) if field.name in _FIELDS]
        parameters += [
            inspect.Parameter(
                name, parameter.kind, default=getattr(parameter.default, name), annotation=_FIELDS[name]
            )
            for name in groups[parameter.name]
        ]

    def run(**values: Any) -> None:
        for group, names in groups.items():
            values[group] = hints[group](**{name: values.pop(name) for name in names})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
