"""The scores of an evaluation, and everything needed to reproduce them.

    Evaluation      one run: data, command, machine, versions
      MethodScores    a model, a folder of estimates or a baseline
        SongScore       one song
          StemScore       values by metric (LABELS), statistics of museval's frames, best and worst excerpt

Pure data: `to_json` writes a record and `read_evaluation` reads it. An undefined value is None, null in JSON.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import InputError

LABELS = {  # metric in the record -> label in tables; in dB but kept, leaked, logWMSE, bleedless, fullness, PEASS
    "sdr": "SDR",
    "frame_sdr": "SDR 1 s",
    "mixture_sdr": "mixture",
    "gain": "gain",
    "si_sdr": "SI-SDR",
    "kept": "kept",
    "leaked": "leaked",
    "museval_sdr": "SDR v4",
    "museval_isr": "ISR v4",
    "museval_sir": "SIR v4",
    "museval_sar": "SAR v4",
    "fast_sdr": "SDR fast",
    "fast_sir": "SIR fast",
    "fast_sar": "SAR fast",
    "log_wmse": "logWMSE",
    "si_sar": "SI-SAR",
    "bleedless": "bleedless",
    "fullness": "fullness",
    "peass_ops": "OPS",
    "peass_tps": "TPS",
    "peass_ips": "IPS",
    "peass_aps": "APS",
}
EXCERPTS = "MUSDB18 7 s excerpts"  # how the name of this data set begins
BASELINE = "baseline"  # a kind of method; the others are "model" and "estimates"


@dataclass(frozen=True)
class FrameStatistics:
    """Distribution of a metric over the frames of a song, in dB."""

    median: float | None  # the official score of the song; None: undefined in every frame
    mean: float | None
    p10: float | None  # 10th percentile
    p90: float | None
    frames: int  # in total
    undefined: int  # frames in which a stem or an estimate is silent, or the ratio infinite

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> FrameStatistics:
        """Statistics of `values`, (frames,); NaN and infinity count as undefined."""
        defined = values[np.isfinite(values)]
        if not defined.size:
            return cls(None, None, None, None, values.size, values.size)
        low, median, high = np.percentile(defined, (10, 50, 90))
        undefined = values.size - defined.size
        return cls(float(median), float(defined.mean()), float(low), float(high), values.size, int(undefined))


@dataclass(frozen=True)
class Excerpt:
    """A part of a song."""

    start: float  # seconds
    sdr: float  # dB, of the whole excerpt


@dataclass(frozen=True)
class StemScore:
    """The score of one stem of one song, or an average over songs."""

    numbers: Mapping[str, float | None]  # by the keys of LABELS
    frames: Mapping[str, FrameStatistics] = field(default_factory=dict)  # of museval's and fast metrics
    best: Excerpt | None = None  # of several seconds in which the stem is about as loud as on average
    worst: Excerpt | None = None

    def __getitem__(self, name: str) -> float | None:
        return self.numbers.get(name)


@dataclass(frozen=True)
class SongScore:
    """The scores of one song."""

    song: str
    seconds: float  # of audio
    separation_seconds: float | None  # wall clock, from decoding to the last stem; None: not separated here
    apart: bool  # left out of the averages
    stems: Mapping[str, StemScore]
    skipped: Mapping[str, str]  # stem -> why it has no score
    warnings: Sequence[str]

    @property
    def is_missing(self) -> bool:
        """Whether there are no estimates of the song."""
        return not self.stems and not self.skipped


@dataclass(frozen=True)
class MethodScores:
    """The scores of one method on every song."""

    name: str
    kind: str  # "model", "estimates" or BASELINE
    songs: tuple[SongScore, ...] = ()
    sha256: str | None = None  # of the model file that ran
    backend: str | None = None
    device: str | None = None
    precision: str | None = None  # of the network's numbers
    threads: int | None = None  # None: the backend's own choice

    @property
    def stems(self) -> tuple[str, ...]:
        """Every stem that some song has a score for, in the order of the songs."""
        return tuple(dict.fromkeys(stem for song in self.songs for stem in song.stems))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that some stem has, in the order of LABELS."""
        known = {name for song in self.songs for score in song.stems.values() for name in score.numbers}
        return tuple(name for name in LABELS if name in known)

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of processing per second of audio, with file I/O but without loading the model; None if unknown."""
        spent = [song.separation_seconds for song in self.songs if song.separation_seconds is not None]
        if not spent or len(spent) < len(self.songs):
            return None
        return sum(spent) / sum(song.seconds for song in self.songs)

    def values(self, stem: str, metric: str) -> dict[str, float]:
        """{song: value} where it is defined, without the songs that are apart."""
        values = {
            song.song: song.stems[stem][metric]
            for song in self.songs
            if not song.apart and stem in song.stems
        }
        return {song: value for song, value in values.items() if value is not None}

    def matrix(self, stems: Sequence[str], metric: str, songs: Sequence[str]) -> NDArray[np.float64]:
        """Values of `metric`, (songs, stems); NaN where undefined."""
        columns = [self.values(stem, metric) for stem in stems]
        return np.array([[column.get(song, np.nan) for column in columns] for song in songs])

    def mean(self, stem: str) -> tuple[StemScore | None, int]:
        """(mean score of `stem` over the songs, number of songs): what the challenges report."""
        return self._average(stem, statistics.fmean)

    def median(self, stem: str) -> tuple[StemScore | None, int]:
        """(median score of `stem` over the songs, number of songs): what the MUSDB18 protocol reports."""
        return self._average(stem, statistics.median)

    def _average(self, stem: str, average: Callable[[list[float]], float]) -> tuple[StemScore | None, int]:
        count = sum(not song.apart and stem in song.stems for song in self.songs)
        if not count:
            return None, 0
        values = {metric: list(self.values(stem, metric).values()) for metric in self.metrics}
        return StemScore({name: average(each) if each else None for name, each in values.items()}), count


@dataclass(frozen=True)
class Evaluation:
    """One run."""

    data: str  # name of the data set
    metrics: tuple[
        str, ...
    ]  # that were requested: "museval", "museval-reference", "fast", "perceptual", "peass"
    methods: tuple[MethodScores, ...]
    command: str
    date: str  # UTC, ISO 8601
    machine: str
    versions: Mapping[str, str]  # package -> version

    @property
    def stems(self) -> tuple[str, ...]:
        """Every stem that some method has a score for."""
        return tuple(dict.fromkeys(stem for method in self.methods for stem in method.stems))

    def with_methods(self, methods: Sequence[MethodScores]) -> Evaluation:
        """The same run with other scores."""
        return replace(self, methods=tuple(methods))

    def to_json(self) -> str:
        """The whole run as an indented JSON object."""
        record: dict[str, Any] = {"format": 2, **asdict(self)}
        for method, entry in zip(self.methods, record["methods"], strict=True):
            entry["audio_seconds"] = sum(song.seconds for song in method.songs)
            entry["real_time_factor"] = method.real_time_factor
            for name, average in (("mean", method.mean), ("median", method.median)):
                averages = {stem: average(stem) for stem in method.stems}
                entry[name] = {
                    stem: {"songs": count, **score.numbers}
                    for stem, (score, count) in averages.items()
                    if score is not None
                }
            songs = entry.pop("songs")
            for song in songs:
                song["stems"] = {
                    stem: score.pop("numbers") | {name: value for name, value in score.items() if value}
                    for stem, score in song["stems"].items()
                }
            entry["songs"] = songs  # the long part last
        return json.dumps(record, indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One row per method, song and stem, with every metric that some stem has."""
        metrics = [name for name in LABELS if any(name in method.metrics for method in self.methods)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "song", "stem", "apart", "skipped", *metrics])
        for method in self.methods:
            for song in method.songs:
                for stem, score in song.stems.items():
                    numbers = ["" if score[name] is None else repr(score[name]) for name in metrics]
                    why = song.skipped.get(stem, "")
                    writer.writerow([method.name, song.song, stem, int(song.apart), why, *numbers])
                for stem in song.skipped.keys() - song.stems.keys():
                    empty = [""] * len(metrics)
                    writer.writerow(
                        [method.name, song.song, stem, int(song.apart), song.skipped[stem], *empty]
                    )
        return text.getvalue()


def read_evaluation(path: Path) -> Evaluation:
    """Read a record that `to_json` wrote, now or in its first format.

    Raises:
        InputError: The file is anything else.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] == 1:
            record = {**record, "metrics": [], "methods": [{**record, "name": record["source"]}]}
        methods = tuple(_method(entry) for entry in record["methods"])
        fields = {name: record[name] for name in ("data", "command", "date", "machine", "versions")}
        return Evaluation(metrics=tuple(record["metrics"]), methods=methods, **fields)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a record of `tfswa-sep eval`: {error}") from error


def _method(entry: Mapping[str, Any]) -> MethodScores:
    songs = []
    for song in entry["songs"]:
        stems = {}
        for stem, score in song["stems"].items():
            frames = {name: FrameStatistics(**values) for name, values in score.get("frames", {}).items()}
            best, worst = (Excerpt(**score[name]) if name in score else None for name in ("best", "worst"))
            numbers = {name: score[name] for name in LABELS if name in score}
            stems[stem] = StemScore(numbers, frames, best, worst)
        songs.append(SongScore(**{**song, "stems": stems}))
    fields = {name: entry[name] for name in ("name", "sha256", "backend", "device", "threads")}
    fields["precision"] = entry.get("precision")  # not in older records
    kind = entry.get("kind") or ("model" if entry["backend"] else "estimates")
    return MethodScores(kind=kind, songs=tuple(songs), **fields)
