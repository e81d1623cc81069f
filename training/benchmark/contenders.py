"""What runs against what: the installed command in each of its settings, and its peers.

A setting of a command is a Contender: a command line to measure, and what to say of it. Peers are made
ready by peers.py.
"""

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
    """One line of the table."""

    name: str  # of the program
    backend: str
    precision: str
    threads: int | None  # None: the command's own choice
    stems: int  # that it writes
    weights: str  # "own", or "random": of the same shape, for speed and memory only
    model_bytes: int | None  # of the files with its weights
    command: tuple[str, ...] = field(repr=False)  # {song} and {out} stand for paths
    first: tuple[str, ...] = field(default=(), repr=False)  # prints a line when the first samples are there
    # Writes the SDR as JSON; {data}, {json} and, where others' stems are scored, {estimates} stand for paths.
    score: tuple[str, ...] = field(default=(), repr=False)
    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # of its environment

    @property
    def label(self) -> str:
        """Name and setting in a few words."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.name} ({self.backend} {self.precision}{threads})"

    @property
    def quality(self) -> str:
        """What the SDR depends on: name, backend and precision, not threads."""
        return f"{self.name} ({self.backend} {self.precision})"

    @property
    def environment(self) -> dict[str, str]:
        """Its variables, and what tells libraries how many threads to use."""
        threads = {} if self.threads is None else dict.fromkeys(_THREADS, str(self.threads))
        return {**threads, **dict(self.variables)}


def filled_in(command: tuple[str, ...], **paths: Path) -> list[str]:
    """A command line with {song} and the like replaced."""
    return [word.format(**paths) if word.startswith("{") else word for word in command]


def find_command(name: str) -> str:
    """The path of an installed command: on the PATH, else beside this Python. Raises SystemExit for none."""
    beside = Path(sys.executable).parent / name  # an absolute path stays itself
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None:
        raise SystemExit(
            f"no command {name!r} on the PATH nor beside {sys.executable}: install the package first"
        )
    return found


def precisions_of(help_text: str) -> tuple[str, ...]:
    """What a command offers as --precision, by its own --help; empty where it has no such option."""
    option = _precision_option(help_text)
    return tuple(each for each in PRECISIONS if re.search(rf"\b{each}\b", option))


def default_precision(help_text: str) -> str:
    """What a command takes for --precision when nobody says it, by its own --help."""
    named = re.search(r"\[default:\s*(\w+)", _precision_option(help_text))
    return named[1] if named else "fp32"


def _precision_option(help_text: str) -> str:
    # The option with its choices: a help text may speak of --precision before it comes to it.
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
    """The command as it is used without options, which is what all else is compared with, then every setting.

    precisions: None for all that the command offers.  extra: options for every separation.
    """
    help_text = _words([command, "separate", "--help"])
    offered = precisions_of(help_text)
    scores_by_precision = bool(precisions_of(_words([command, "eval", "run", "--help"])))
    sizes_by_precision = bool(precisions_of(_words([command, "models", "path", "--help"])))
    python = Path(command).resolve().parent / "python"  # of the environment that the command belongs to
    stems = len(parse_stems(_value("--stems", extra), STEMS)[0])

    def contender(backend: str, precision: str, count: int | None) -> Contender:
        choice = ["--precision", precision] if offered else []
        options = ["--backend", backend, *choice]
        path = _words([
            command, "models", "path", model, "--backend", "onnx" if backend == "auto" else backend,
            *(choice if sizes_by_precision else []),
        ]).strip()  # fmt: skip
        first = [str(python), "-P", str(_FIRST_SAMPLE), "{song}", backend]
        if count:
            first.append(f"threads={count}")
        if offered:
            first.append(f"precision={precision}")
        score = [command, "eval", "run", "--data", "{data}", "--json", "{json}", "--quiet", "--model", model]
        return Contender(
            name="tfswa-sep",
            backend=backend,
            precision=precision,
            threads=count,
            stems=stems,
            weights="own",
            model_bytes=Path(path).stat().st_size if path and Path(path).is_file() else None,
            command=(
                command, "{song}", "--out", "{out}", "--quiet", *options,
                *(["--threads", str(count)] if count else []), *extra,
            ),
            first=tuple(first),
            score=(*score, "--backend", backend, *(choice if scores_by_precision else [])),
        )  # fmt: skip

    def wanted(backend: str) -> list[str]:
        if precisions or not offered:
            return precisions or ["fp32"]
        # Models in 8 bits are ONNX files; what 16 bits bring with torch, "auto" shows.
        return ["fp32", "auto"] if backend == "torch" else list(offered)

    every = [contender(b, p, count) for b in backends for p in wanted(b) for count in threads]
    return [contender("auto", default_precision(help_text), None), *every]


def score(contender: Contender, data: Path) -> dict[str, float]:
    """The mean SDR in dB of each stem over the songs of `data`, by `tfswa-sep eval`.

    Raises FailedCommandError.
    """
    with tempfile.TemporaryDirectory(prefix="tfswa-sep-benchmark-") as name:
        folder = Path(name)
        if "{estimates}" in contender.score:  # not a model of ours: separate the songs first
            (folder / "estimates").mkdir()
            for song in find_songs(data):
                mixture = folder / f"{song.name}.wav"
                song.write_mixture(mixture, rate=SAMPLE_RATE)
                command = filled_in(contender.command, song=mixture, out=folder / "estimates")
                measure(command, environment=contender.environment)
                mixture.unlink()
        record = folder / "scores.json"
        measure(filled_in(contender.score, data=data, json=record, estimates=folder / "estimates"))
        means = json.loads(record.read_text("utf-8"))["methods"][0]["mean"]
    return {stem: found["sdr"] for stem, found in means.items()}


def _value(option: str, words: list[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="value")
    found: str | None = parser.parse_known_args(words)[0].value
    return found


def _words(command: list[str]) -> str:
    """What a command prints; nothing where it fails, as an older version of ours does."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""
