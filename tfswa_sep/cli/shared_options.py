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
        help="A model name (see `models`), a model file, or an hf:// or https:// address.",
    ),
]
Precision = Annotated[
    Literal["fp32", "int8", "auto"],
    typer.Option(help="Numeric precision; auto picks the fastest here: int8 (onnx), 16-bit (torch) or fp32."),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", callback=_go_offline, help="Never use the network; fail if a model is missing."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

_FIELDS: dict[str, Any] = {  # of Runtime and OutputOptions that can be chosen on the command line
    "backend": Annotated[
        Literal["auto", "onnx", "torch"],
        typer.Option(help="Inference backend; auto picks the fastest available."),
    ],
    "device": Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda (or cuda:1, ...), mps or coreml.")
    ],
    "precision": Precision,
    "threads": Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads [default: one per core].")
    ],
    "shifts": Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Average N time-shifted passes: slightly better, N times slower."
        ),
    ],
    "stems": Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="vocals, drums, bass, other, accompaniment (all but the vocals) or a sum such as "
            "drums+bass, separated by commas [default: all four].",
        ),
    ],
    "out": Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Output folder.")],
    "name": Annotated[str, typer.Option(metavar="PATTERN", help="File names under --out.")],
    "audio_format": Annotated[
        Literal["wav", "flac", "mp3", "ogg", "opus", "m4a"],
        typer.Option("--format", metavar="KIND", help="wav, flac, mp3, ogg, opus or m4a."),
    ],
    "bit_depth": Annotated[
        Literal["16", "24", "32f"] | None,
        typer.Option(help="Bits per sample; 32f cannot clip [default: 32f; flac: 24]."),
    ],
    "bitrate": Annotated[
        int | None,
        typer.Option(
            metavar="KBIT/S", help="For lossy formats [default: mp3 320, ogg 256, opus 192, m4a 256]."
        ),
    ],
    "rescale": Annotated[
        bool,
        typer.Option("--rescale", help="If a stem would clip, turn all stems down by the same amount."),
    ],
    "exact_sum": Annotated[
        bool,
        typer.Option("--exact-sum", help="Make the stems sum exactly to the song by adjusting the last one."),
    ],
    "stem_file": Annotated[
        bool, typer.Option("--stem-file", help="Also write SONG.stem.mp4, for Traktor and other DJ software.")
    ],
    "downmix": Annotated[bool, typer.Option("--downmix", help="Mix surround sound down to stereo.")],
    "allow_truncated": Annotated[
        bool, typer.Option("--allow-truncated", help="Separate what can be read of a truncated file.")
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
