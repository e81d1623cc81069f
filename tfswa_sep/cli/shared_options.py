"""Options that several commands share: one name, one type and one help text each.

A command takes all fields of OutputOptions, Runtime or ServeOptions as one parameter: see `with_options`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from tfswa_sep.cli.help import ADDRESS, BATCH, HARDWARE, INPUT, LIMITS, MESSAGES, OUTPUT, STEMS
from tfswa_sep.options import OutputOptions, Runtime, ServeOptions


def _go_offline(wanted: bool) -> bool:
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the registry and by huggingface_hub
    return wanted


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model's name (see `models`), a model file, or an hf:// or https:// address.",
        rich_help_panel=HARDWARE,
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "int8"],
    typer.Option(
        help="Numeric precision; auto picks the fastest here: int8 (onnx), 16-bit (torch) or fp32.",
        rich_help_panel=HARDWARE,
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        callback=_go_offline,
        help="Never use the network; fail if a model is missing.",
        rich_help_panel=HARDWARE,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=MESSAGES)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only errors and warnings.", rich_help_panel=MESSAGES)
]
Debug = Annotated[bool, typer.Option("--debug", help="Print tracebacks.", rich_help_panel=MESSAGES)]

Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", min=1, metavar="N", help="Songs to separate in parallel.", rich_help_panel=BATCH
    ),
]


def _limit(metavar: str, text: str) -> Any:
    return Annotated[float, typer.Option(metavar=metavar, help=text, rich_help_panel=LIMITS)]


# The fields of Runtime, OutputOptions and ServeOptions that can be chosen on the command line.
_FIELDS: dict[str, Any] = {
    "backend": Annotated[
        Literal["auto", "onnx", "torch"],
        typer.Option(help="Inference backend; auto picks the fastest.", rich_help_panel=HARDWARE),
    ],
    "device": Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="auto, cpu, cuda (or cuda:1, ...), mps or coreml.",
            rich_help_panel=HARDWARE,
        ),
    ],
    "precision": Precision,
    "threads": Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="CPU threads.  [default: one per core]", rich_help_panel=HARDWARE
        ),
    ],
    "shifts": Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Average N passes, each shifted in time: slightly better, N times slower.",
            rich_help_panel=HARDWARE,
        ),
    ],
    "model_settings": Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Settings that a third-party model file lacks, such as 'n_fft=6144 stems=vocals,instrumental'.",
            show_default=False,
            rich_help_panel=HARDWARE,
        ),
    ],
    "stems": Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="vocals, drums, bass, other, accompaniment (all but the vocals) or sums such as drums+bass, "
            "separated by commas.  [default: all of the model]",
            rich_help_panel=STEMS,
        ),
    ],
    "out": Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FOLDER", help="Output folder.", rich_help_panel=OUTPUT),
    ],
    "name": Annotated[
        str, typer.Option(metavar="PATTERN", help="File names inside --out.", rich_help_panel=OUTPUT)
    ],
    "audio_format": Annotated[
        Literal["wav", "flac", "mp3", "ogg", "opus", "m4a"],
        typer.Option(
            "--format", metavar="FORMAT", help="wav, flac, mp3, ogg, opus or m4a.", rich_help_panel=OUTPUT
        ),
    ],
    "bit_depth": Annotated[
        Literal["16", "24", "32f"] | None,
        typer.Option(
            metavar="BITS",
            help="16, 24 or 32f (float, cannot clip).  [default: 32f; flac: 24]",
            rich_help_panel=OUTPUT,
        ),
    ],
    "bitrate": Annotated[
        int | None,
        typer.Option(
            metavar="KBIT/S",
            help="Bitrate of lossy formats.  [default: mp3 320, ogg 256, opus 192, m4a 256]",
            rich_help_panel=OUTPUT,
        ),
    ],
    "rescale": Annotated[
        bool,
        typer.Option(
            "--rescale",
            help="If a stem would clip, turn all stems down by the same amount.",
            rich_help_panel=STEMS,
        ),
    ],
    "exact_sum": Annotated[
        bool,
        typer.Option(
            "--exact-sum",
            help="Adjust the last stem so that the stems sum exactly to the song.",
            rich_help_panel=STEMS,
        ),
    ],
    "stem_file": Annotated[
        bool,
        typer.Option(
            "--stem-file",
            help="Also write SONG.stem.mp4, for Traktor and other DJ software.",
            rich_help_panel=OUTPUT,
        ),
    ],
    "downmix": Annotated[
        bool,
        typer.Option("--downmix", help="Mix surround sound down to stereo.", rich_help_panel=INPUT),
    ],
    "track": Annotated[
        int | None,
        typer.Option(
            "--track",
            metavar="N",
            help="Audio track to separate, counting from 1.  [default: the default track, or the first not silent]",
            rich_help_panel=INPUT,
        ),
    ],
    "allow_truncated": Annotated[
        bool,
        typer.Option(
            "--allow-truncated",
            help="Separate what can be read of a truncated or damaged file.",
            rich_help_panel=INPUT,
        ),
    ],
    "host": Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; 0.0.0.0 for all. Needs --token or --no-auth unless it is this machine's own.",
            rich_help_panel=ADDRESS,
        ),
    ],
    "port": Annotated[
        int,
        typer.Option(
            min=0, max=65_535, metavar="N", help="Port; 0 for any free one.", rich_help_panel=ADDRESS
        ),
    ],
    "token": Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar="TFSWA_TOKEN",
            help="Password of the page and the API, at least 16 characters.",
            rich_help_panel=ADDRESS,
        ),
    ],
    "no_auth": Annotated[
        bool,
        typer.Option("--no-auth", help="Let anyone who reaches the server use it.", rich_help_panel=ADDRESS),
    ],
    "allow_hosts": Annotated[
        list[str],
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A domain name that the server is reached by; may be repeated.",
            rich_help_panel=ADDRESS,
        ),
    ],
    "allow_path": Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            exists=True,
            help="Let API clients name songs in this folder by path.",
            rich_help_panel=ADDRESS,
        ),
    ],
    "data": Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Where songs and stems are kept.  [default: the platform's data folder]",
            rich_help_panel=LIMITS,
        ),
    ],
    "jobs": Jobs,
    "max_size": _limit("MB", "Largest song."),
    "max_minutes": _limit("MINUTES", "Longest song."),
    "max_queue": Annotated[
        int, typer.Option(min=1, metavar="N", help="Songs that may wait.", rich_help_panel=LIMITS)
    ],
    "time_limit": _limit("MINUTES", "Time that one song may take."),
    "quota": _limit("GB", "Disk space of all songs and stems."),
    "keep": _limit("DAYS", "How long finished songs are kept."),
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of `command` that is a Runtime, OutputOptions or ServeOptions by one option per field.

    The fields of the parameter's default are the defaults of the options. A field that is also a parameter of its own
    keeps its default. Typer reads the signature, so that is rewritten.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, list[str]] = {}
    known = inspect.signature(command).parameters
    for parameter in known.values():
        kind = hints[parameter.name]
        if kind not in (OutputOptions, Runtime, ServeOptions):
            parameters.append(parameter.replace(annotation=kind))
            continue
        names = [field.name for field in fields(kind) if field.name in _FIELDS and field.name not in known]
        groups[parameter.name] = names
        parameters += [
            inspect.Parameter(
                name, parameter.kind, default=getattr(parameter.default, name), annotation=_FIELDS[name]
            )
            for name in names
        ]

    def run(**values: Any) -> None:
        for group, names in groups.items():
            values[group] = hints[group](**{name: values.pop(name) for name in names})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
