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

from tfswa_sep.cli.help import ADDRESS, BATCH, HARDWARE, INPUT, LIMITS, MESSAGES, OUTPUT, STEMS, option
from tfswa_sep.options import OutputOptions, Runtime, ServeOptions


def _go_offline(wanted: bool) -> bool:
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the registry and by huggingface_hub
    return wanted


Model = Annotated[
    str | None,
    option(
        HARDWARE,
        "A model's name (see `models`), a model file, or an hf:// or https:// address.",
        "--model",
        "-m",
        metavar="MODEL",
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "int8"],
    option(
        HARDWARE,
        "Numeric precision; auto picks the fastest here: int8 (onnx), 16-bit (torch, openvino) or fp32.",
    ),
]
Offline = Annotated[
    bool,
    option(HARDWARE, "Never use the network; fail if a model is missing.", "--offline", callback=_go_offline),
]
Json = Annotated[bool, option(MESSAGES, "Print the result as one JSON object.", "--json")]
Quiet = Annotated[bool, option(MESSAGES, "Print only errors and warnings.", "--quiet", "-q")]
Debug = Annotated[bool, option(MESSAGES, "Print tracebacks.", "--debug")]

Jobs = Annotated[int, option(BATCH, "Songs to separate in parallel.", "--jobs", "-j", min=1, metavar="N")]


def _limit(metavar: str, text: str) -> Any:
    return Annotated[float, option(LIMITS, text, metavar=metavar)]


# The fields of Runtime, OutputOptions and ServeOptions that can be chosen on the command line.
_FIELDS: dict[str, Any] = {
    "backend": Annotated[
        Literal["auto", "onnx", "openvino", "torch"],
        option(HARDWARE, "Inference backend; auto picks the fastest."),
    ],
    "device": Annotated[
        str,
        option(
            HARDWARE,
            "auto, cpu, cuda (or cuda:1, ...), mps, coreml, gpu or npu (openvino).",
            metavar="DEVICE",
        ),
    ],
    "precision": Precision,
    "threads": Annotated[
        int | None, option(HARDWARE, "CPU threads.  [default: one per core]", min=1, metavar="N")
    ],
    "shifts": Annotated[
        int,
        option(
            HARDWARE,
            "Average N passes, each shifted in time: slightly better, N times slower.",
            min=1,
            metavar="N",
        ),
    ],
    "model_settings": Annotated[
        str,
        option(
            HARDWARE,
            "Settings that a third-party model file lacks, such as 'n_fft=6144 stems=vocals,instrumental'.",
            metavar="LIST",
            show_default=False,
        ),
    ],
    "stems": Annotated[
        str | None,
        option(
            STEMS,
            "vocals, drums, bass, other, accompaniment (all but the vocals) or sums such as drums+bass, "
            "separated by commas.  [default: all of the model]",
            metavar="LIST",
        ),
    ],
    "out": Annotated[Path, option(OUTPUT, "Output folder.", "--out", "-o", metavar="FOLDER")],
    "name": Annotated[str, option(OUTPUT, "File names inside --out.", metavar="PATTERN")],
    "audio_format": Annotated[
        Literal["wav", "flac", "mp3", "ogg", "opus", "m4a"],
        option(OUTPUT, "wav, flac, mp3, ogg, opus or m4a.", "--format", metavar="FORMAT"),
    ],
    "bit_depth": Annotated[
        Literal["16", "24", "32f"] | None,
        option(OUTPUT, "16, 24 or 32f (float, cannot clip).  [default: 32f; flac: 24]", metavar="BITS"),
    ],
    "bitrate": Annotated[
        int | None,
        option(
            OUTPUT,
            "Bitrate of lossy formats.  [default: mp3 320, ogg 256, opus 192, m4a 256]",
            metavar="KBIT/S",
        ),
    ],
    "rescale": Annotated[
        bool, option(STEMS, "If a stem would clip, turn all stems down by the same amount.", "--rescale")
    ],
    "exact_sum": Annotated[
        bool, option(STEMS, "Adjust the last stem so that the stems sum exactly to the song.", "--exact-sum")
    ],
    "stem_file": Annotated[
        bool, option(OUTPUT, "Also write SONG.stem.mp4, for Traktor and other DJ software.", "--stem-file")
    ],
    "downmix": Annotated[bool, option(INPUT, "Mix surround sound down to stereo.", "--downmix")],
    "track": Annotated[
        int | None,
        option(
            INPUT,
            "Audio track to separate, counting from 1.  [default: the default track, or the first not silent]",
            "--track",
            metavar="N",
        ),
    ],
    "allow_truncated": Annotated[
        bool, option(INPUT, "Separate what can be read of a truncated or damaged file.", "--allow-truncated")
    ],
    "host": Annotated[
        str,
        option(
            ADDRESS,
            "Address to listen on; 0.0.0.0 for all. Needs --token or --no-auth unless it is this machine's own.",
            metavar="ADDRESS",
        ),
    ],
    "port": Annotated[int, option(ADDRESS, "Port; 0 for any free one.", min=0, max=65_535, metavar="N")],
    "token": Annotated[
        str | None,
        option(
            ADDRESS,
            "Password of the page and the API, at least 16 characters.",
            metavar="TEXT",
            envvar="TFSWA_TOKEN",
        ),
    ],
    "no_auth": Annotated[bool, option(ADDRESS, "Let anyone who reaches the server use it.", "--no-auth")],
    "allow_hosts": Annotated[
        list[str],
        option(
            ADDRESS,
            "A domain name that the server is reached by; may be repeated.",
            "--allow-host",
            metavar="NAME",
        ),
    ],
    "allow_path": Annotated[
        Path | None,
        option(
            ADDRESS,
            "Let API clients name songs in this folder by path.",
            metavar="FOLDER",
            file_okay=False,
            exists=True,
        ),
    ],
    "data": Annotated[
        Path | None,
        option(
            LIMITS,
            "Where songs and stems are kept.  [default: the platform's data folder]",
            metavar="FOLDER",
            file_okay=False,
        ),
    ],
    "jobs": Jobs,
    "max_size": _limit("MB", "Largest song."),
    "max_minutes": _limit("MINUTES", "Longest song."),
    "max_queue": Annotated[int, option(LIMITS, "Songs that may wait.", min=1, metavar="N")],
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
