"""What an evaluation found: scores by song, means, and all that is needed to get the same numbers again.

Pure data: `Report.to_json()` is the record, `report_table` the same for people. Nothing is printed here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = ("tfswa-sep", "numpy", "soundfile", "soxr", "onnxruntime", "torch")


@dataclass(frozen=True)
class StemScore:
    """How good one stem of one song is, or the mean over some songs; the numbers are those of metrics.py."""

    sdr: float  # dB
    mixture_sdr: float  # dB, of the mixture taken as the estimate
    si_sdr: float | None  # dB; None for a silent estimate
    kept: float  # gain of the true stem in the estimate, 1 is perfect
    leaked: float  # gain of all the other stems in the estimate, 0 is perfect
    oracle_sdr: float | None = None  # dB, of the ideal ratio mask

    @property
    def gain(self) -> float:
        """dB above the mixture."""
        return self.sdr - self.mixture_sdr

    def as_dict(self) -> dict[str, float | None]:
        """Every number by name, the gain too."""
        numbers = {"sdr": self.sdr, "mixture_sdr": self.mixture_sdr, "gain": self.gain, "si_sdr": self.si_sdr}
        return {**numbers, "kept": self.kept, "leaked": self.leaked, "oracle_sdr": self.oracle_sdr}


@dataclass(frozen=True)
class SongScore:
    """The scores of one song."""

    song: str
    seconds: float  # of audio
    separation_seconds: float | None  # wall clock, decoding to the last stem; None: another tool's
    apart: bool  # kept out of the mean
    stems: dict[str, StemScore]
    skipped: dict[str, str]  # stem -> why it has no score
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The scores of one evaluation and where they come from."""

    data: str  # name of the folder of songs
    source: str  # name of the model, or of the folder of estimates
    songs: tuple[SongScore, ...]
    sha256: str | None  # of the model file that ran
    backend: str | None
    device: str | None
    threads: int | None  # None: the backend's own choice
    command: str
    date: str  # UTC, ISO 8601
    machine: str
    versions: dict[str, str]  # package -> version

    @classmethod
    def now(
        cls,
        *,
        data: str,
        source: str,
        songs: tuple[SongScore, ...],
        sha256: str | None = None,
        backend: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        command: str | None = None,
    ) -> Report:
        """A report that describes this moment and this machine; command None: this process's arguments."""
        return cls(
            data=data,
            source=source,
            songs=songs,
            sha256=sha256,
            backend=backend,
            device=device,
            threads=threads,
            command=command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine(),
            versions=versions(),
        )

    @property
    def stems(self) -> tuple[str, ...]:
        """Every stem that some song has a score for, in the order of the songs."""
        return tuple(dict.fromkeys(stem for song in self.songs for stem in song.stems))

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work a second of audio, files included, loading the model not; None for another tool."""
        spent = [song.separation_seconds for song in self.songs if song.separation_seconds is not None]
        return (
            sum(spent) / sum(song.seconds for song in self.songs) if len(spent) == len(self.songs) else None
        )

    def mean(self, stem: str) -> tuple[StemScore | None, int]:
        """(mean score of `stem`, how many songs it is over); songs that are apart do not count."""
        scores = [song.stems[stem] for song in self.songs if not song.apart and stem in song.stems]
        if not scores:
            return None, 0
        mean = StemScore(
            sdr=_mean([score.sdr for score in scores]) or 0.0,
            mixture_sdr=_mean([score.mixture_sdr for score in scores]) or 0.0,
            si_sdr=_mean([score.si_sdr for score in scores]),
            kept=_mean([score.kept for score in scores]) or 0.0,
            leaked=_mean([score.leaked for score in scores]) or 0.0,
            oracle_sdr=_mean([score.oracle_sdr for score in scores]),
        )
        return mean, len(scores)

    def to_json(self) -> str:
        """The whole report as an indented JSON object; SDRs in dB, `null` where a number is not defined."""
        means: dict[str, Any] = {}
        for stem in self.stems:
            score, count = self.mean(stem)
            if score is not None:
                means[stem] = {"songs": count, **score.as_dict()}
        record = {
            "format": 1,
            "data": self.data,
            "source": self.source,
            "sha256": self.sha256,
            "backend": self.backend,
            "device": self.device,
            "threads": self.threads,
            "command": self.command,
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "audio_seconds": sum(song.seconds for song in self.songs),
            "real_time_factor": self.real_time_factor,
            "mean": means,
            "songs": [
                {
                    "song": song.song,
                    "apart": song.apart,
                    "seconds": song.seconds,
                    "separation_seconds": song.separation_seconds,
                    "stems": {stem: score.as_dict() for stem, score in song.stems.items()},
                    "skipped": song.skipped,
                    "warnings": list(song.warnings),
                }
                for song in self.songs
            ],
        }
        return json.dumps(record, indent=2, allow_nan=False) + "\n"


def report_table(report: Report) -> Table:
    """The report as a rich table: one line a song and stem, then the means, then what has to be said."""
    from rich.table import Table

    oracle = any(score.oracle_sdr is not None for song in report.songs for score in song.stems.values())
    columns = [
        "song",
        "stem",
        "SDR",
        "mixture",
        "gain",
        "SI-SDR",
        "kept",
        "leaked",
        *(["oracle"] if oracle else []),
    ]
    notes = [f"{song.song}: {note}" for song in report.songs for note in song.warnings]
    if any(song.apart for song in report.songs):
        notes.append("songs in parentheses are not in the mean")
    table = Table(title=f"{report.source} on {report.data}, global SDR in dB")
    for name in columns:
        table.add_column(name, justify="left" if name in ("song", "stem") else "right")
    for song in report.songs:
        name = f"({song.song})" if song.apart else song.song
        for stem, score in song.stems.items():
            table.add_row(name, stem, *_cells(score, oracle))
            name = ""
        for stem, why in song.skipped.items():
            table.add_row(name, stem, *["-"] * (len(columns) - 2))
            notes.append(f"{song.song}, {stem}: {why}")
            name = ""
        table.add_section()
    for stem in report.stems:
        mean, count = report.mean(stem)
        if mean is not None:
            table.add_row(f"mean of {count}", stem, *_cells(mean, oracle), style="bold")
    table.caption = "\n".join(notes)
    return table


def machine() -> str:
    """One line on the computer: processor, cores that this process may use, operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return (
        f"{name}, {cores} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def versions() -> dict[str, str]:
    """{package: version} of the packages that numbers depend on, those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _mean(numbers: Sequence[float | None]) -> float | None:
    """The mean of the numbers that are defined."""
    defined = [number for number in numbers if number is not None]
    return sum(defined) / len(defined) if defined else None


def _cells(score: StemScore, oracle: bool) -> list[str]:
    decibels = [f"{score.sdr:.2f}", f"{score.mixture_sdr:.2f}", f"{score.gain:+.2f}", _decibels(score.si_sdr)]
    return [
        *decibels,
        f"{score.kept:.2f}",
        f"{score.leaked:.3f}",
        *([_decibels(score.oracle_sdr)] if oracle else []),
    ]


def _decibels(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"
