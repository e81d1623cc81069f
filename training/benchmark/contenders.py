"""What is benchmarked: each setting of the installed command is one contender. Peers are added by peers.py."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tfswa_sep.constants import SAMPLE_RATE, STEMS
from tfswa_sep.evaluation.multitrack import find_songs
from tfswa_sep.inference.stem_matrix import parse_stems
from training.benchmark.measure import measure

_FIRST_SAMPLE = Path(__file__).with_name("first_sample.py")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A program with its settings: one row of the table."""

    name: str  # of the program
    backend: str
    precision: str
    threads: int | None  # None: the command's own choice
    stems: int  # number of stems written
    weights: str  # "own", or "random" for weights of the same shape, to measure only speed and memory
    model_bytes: int | None  # size of the weights
    command: tuple[str, ...] = field(repr=False)  # with the placeholders {song} and {out}
    first_sample: tuple[str, ...] = field(default=(), repr=False)  # prints a line at the first samples
    # Writes the SDR as JSON; with {data}, {json} and, to score stems that `command` wrote, {estimates}.
    score: tuple[str, ...] = field(default=(), repr=False)
    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # environment variables

    @property
    def label(self) -> str:
        """Name and settings."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.name} ({self.backend} {self.precision}{threads})"

    @property
    def without_threads(self) -> str:
        """The label without threads, which do not affect the SDR."""
        return f"{self.name} ({self.backend} {self.precision})"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables, including those that set the number of threads."""
        threads = {} if self.threads is None else dict.fromkeys(_THREADS, str(self.threads))
        return {**threads, **dict(self.variables)}


def fill_in(command: tuple[str, ...], **paths: Path) -> list[str]:
    """Replace placeholders such as {song} in a command line."""
    return [word.format(**paths) if word.startswith("{") else word for word in command]


def find_command(name: str) -> str:
    """Find an installed command on the PATH, else next to this Python. Raises SystemExit if there is none."""
    next_to_python = Path(sys.executable).parent / name  # an absolute path stays as it is
    path = shutil.which(name) or (str(next_to_python) if next_to_python.exists() else None)
    if path is None:
        raise SystemExit(
            f"no command {name!r} on the PATH or next to {sys.executable}: install the package first"
        )
    return path


def precisions_of(help_text: str) -> tuple[str, ...]:
    """Return the choices of --precision in a help text, empty if there is no such option."""
    option = _precision_option(help_text)
    return tuple(each for each in PRECISIONS if re.search(rf"\b{each}\b", option))


def default_precision(help_text: str) -> str:
    """Return the default of --precision in a help text."""
    default = re.search(r"\[default:\s*(\w+)", _precision_option(help_text))
    return default[1] if default else "fp32"


def _precision_option(help_text: str) -> str:
    # Only with its choices: other options may mention --precision.
    option = re.search(r"--precision\s+([<\[].*?)(?:\n\s*-|\Z)", help_text, re.DOTALL)
    return option[1] if option else ""


def our_contenders(
    command: str,
    *,
    backends: list[str],
    precisions: list[str] | None,
    threads: list[int],
    extra: list[str],
    model: str = "small",
) -> list[Contender]:
    """Return the command without options, with which all others are compared, then with each setting.

    Without `precisions`, all that the command supports are measured. `extra` are options of every separation.
    """
    help_text = _stdout_of([command, "separate", "--help"])
    python = Path(command).resolve().parent / "python"  # of the command's environment
    stems = len(parse_stems(_option_value("--stems", extra), STEMS)[0])
    model = _option_value("--model", extra) or model

    def contender(backend: str, precision: str, count: int | None) -> Contender:
        options = ["--backend", backend, "--precision", precision]
        file_options = ["--backend", "onnx" if backend == "auto" else backend, "--precision", precision]
        path = Path(_stdout_of([command, "models", "path", model, *file_options]).strip())
        first_sample = [str(python), "-P", str(_FIRST_SAMPLE), "{song}", backend]
        if count:
            first_sample.append(f"threads={count}")
        first_sample.append(f"precision={precision}")
        score = [command, "eval", "run", "--data", "{data}", "--json", "{json}", "--quiet", "--model", model]
        return Contender(
            name="tfswa-sep",
            backend=backend,
            precision=precision,
            threads=count,
            stems=stems,
            weights="own",
            model_bytes=path.stat().st_size if path.is_file() else None,
            command=(
                command, "{song}", "--out", "{out}", "--quiet", *options,
                *(["--threads", str(count)] if count else []), *extra,
            ),
            first_sample=tuple(first_sample),
            score=(*score, *options),
        )  # fmt: skip

    def precisions_for(backend: str) -> list[str]:
        if precisions:
            return precisions
        # int8 is for ONNX only; with torch, "auto" is bf16 where the hardware supports it.
        return ["fp32", "auto"] if backend == "torch" else list(precisions_of(help_text))

    settings = [contender(b, p, count) for b in backends for p in precisions_for(b) for count in threads]
    return [contender("auto", default_precision(help_text), None), *settings]


def score(contender: Contender, data: Path) -> dict[str, float]:
    """Return the mean SDR (dB) of each stem over the songs in `data`, computed by `tfswa-sep eval`.

    Raises:
        FailedCommandError: A command failed.
    """
    with tempfile.TemporaryDirectory(prefix="tfswa-sep-benchmark-") as name:
        folder = Path(name)
        if "{estimates}" in contender.score:  # a peer: separate the songs first
            (folder / "estimates").mkdir()
            for song in find_songs(data):
                mixture = folder / f"{song.name}.wav"
                song.write_mixture(mixture, rate=SAMPLE_RATE)
                command = fill_in(contender.command, song=mixture, out=folder / "estimates")
                measure(command, environment=contender.environment)
                mixture.unlink()
        record = folder / "scores.json"
        measure(fill_in(contender.score, data=data, json=record, estimates=folder / "estimates"))
        means = json.loads(record.read_text("utf-8"))["methods"][0]["mean"]
    return {stem: mean["sdr"] for stem, mean in means.items()}


def _option_value(option: str, arguments: list[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="value")
    value: str | None = parser.parse_known_args(arguments)[0].value
    return value


def _stdout_of(command: list[str]) -> str:
    """Return what a command prints, or "" if it fails, such as for a model without a file."""
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return process.stdout if process.returncode == 0 else ""
