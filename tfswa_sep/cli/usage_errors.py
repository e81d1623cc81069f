"""Messages about invalid command lines, also for those who come from another separator."""

from __future__ import annotations

from typing import Any

from typer import TyperException

_OPTIONS = {  # of demucs, Spleeter and audio-separator, and what they are called here
    "-n": "--model",
    "-d": "--device",
    "-p": "--stems",
    "-f": "--name",
    "-c": "--format",
    "-b": "--bitrate",
    "--mp3": "--format mp3",
    "--flac": "--format flac",
    "--int24": "--bit-depth 24",
    "--float32": "--bit-depth 32f",
    "--mp3-bitrate": "--bitrate",
    "--clip-mode": "--rescale",
    "--filename": "--name",
    "--model_filename": "--model",
    "--output_dir": "--out",
    "--output_format": "--format",
    "--single_stem": "--stems",
}
_SHORTER = {  # pydantic's words -> plainer ones
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "not a whole number",
    "Input should be a valid number, unable to parse string as a number": "not a number",
    "Input should be greater than or equal to": "must be at least",
    "Input should be less than or equal to": "must be at most",
}


def usage_message(error: TyperException, program: str) -> str:
    """The message of an invalid command line, with the option that was probably meant."""
    context: Any = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    for long, short in _SHORTER.items():
        message = message.replace(long, short)
    extra = message.removeprefix("Got unexpected extra argument(s) ")
    if extra != message and context and context.command.name == "list":  # what follows `models` is no command
        commands = ", ".join(context.parent.command.commands)
        message = f"no such command: {extra.strip('()')}; choose from {commands}"
        context = context.parent
    unknown = getattr(error, "option_name", None)
    if unknown and context:
        shown = [parameter for parameter in context.command.params if not getattr(parameter, "hidden", False)]
        known = {name for parameter in shown for name in parameter.opts}
        meant = [_OPTIONS[unknown]] if unknown in _OPTIONS else getattr(error, "possibilities", None) or []
        meant = [name for name in meant if name.split()[0] in known]
        message = f"no such option: {unknown}"
        message += f"; did you mean {' or '.join(meant)}?" if meant else ""
    message = message[:1].lower() + message[1:]  # as all messages of ours begin
    return f"{message} (see {context.command_path if context else program} --help)"
