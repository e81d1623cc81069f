"""The options of a separation, shared by the command, the Python API, batches and evaluation."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from tfswa_sep.constants import NAME_TEMPLATE
from tfswa_sep.errors import UsageError

BACKENDS = ("auto", "onnx", "openvino", "torch")
_KINDS_OF_FILES = {"openvino": "onnx"}  # where a backend has none of its own
_SHORTEST_TOKEN = 16
_Options = TypeVar("_Options", "Runtime", "OutputOptions")
_DEVICE = re.compile(r"auto|cpu|gpu|npu|mps|coreml|cuda(:\d{1,3})?")


def kind_of_file(backend: str) -> str:
    """The backend under which a model lists the files that `backend` reads."""
    return _KINDS_OF_FILES.get(backend, backend)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how the model runs.

    Attributes:
        backend: "onnx", "openvino", "torch", or "auto": torch if there is a GPU (CUDA or MPS) and the model has a
            torch file, OpenVINO if it is installed and the CPU has AMX, else onnx.
        device: "auto", "cpu", "cuda", "cuda:N", "mps" (torch), "coreml" (onnx), or, of Intel's processors with
            OpenVINO, "gpu" or "npu". If backend and device are "auto"
            and the GPU cannot be used, the CPU is used, and the backend's notes say so.
        precision: "fp32", "int8" (onnx), or "auto" for the fastest: int8 on CPUs with int8 instructions, 16 bits in
            torch and OpenVINO on devices that are faster with them.
        threads: CPU threads; None for one per physical core.
        batch_size: Segments per call (torch: at most 16); None for the device's best.
        shifts: Passes over the song, each with its segments at another offset; the stems are their mean. N passes
            take N times as long.
        model_settings: Settings that a third-party ONNX file lacks, as KEY=VALUE separated by spaces, such as
            "n_fft=6144 stems=vocals,instrumental".

    Raises:
        UsageError: An unknown backend or device, a number below 1, or a setting that is not KEY=VALUE.
    """

    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    batch_size: int | None = None
    shifts: int = 1
    model_settings: str = ""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"unknown backend '{self.backend}': choose from {', '.join(BACKENDS)}")
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(
                f"unknown device '{self.device}': choose from auto, cpu, cuda, cuda:N, mps, coreml, gpu, npu"
            )
        _check_counts(threads=self.threads, batch_size=self.batch_size, shifts=self.shifts)
        _ = self.settings

    @property
    def settings(self) -> dict[str, str]:
        """`model_settings` by key."""
        pairs = [text.partition("=") for text in self.model_settings.split()]
        for key, equals, value in pairs:
            if not (key and equals and value):
                raise UsageError(
                    f"invalid model setting '{key}{equals}{value}': expected KEY=VALUE, such as n_fft=6144"
                )
        return {key: value for key, _, value in pairs}


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How a song is read and its stems are written.

    Attributes:
        stems: Names, "accompaniment", and sums such as "drums+bass", separated by commas or in a list; None for
            all of the model's.
        out: The folder.
        name: Template of the files' paths in `out`, with {track}, {stem} and {ext} (".wav").
        audio_format: "wav", "flac", "mp3", "ogg", "opus" or "m4a".
        bit_depth: "32f" (wav), "24" or "16"; None for 32f in wav and 24 in flac.
        bitrate: kbit/s of mp3, ogg, opus and m4a; None for a high one.
        rescale: Turn all stems down by one common gain if any would clip.
        exact_sum: Make the last stem the song minus the others, so that all add up to the song exactly.
        stem_file: Also write all stems as one Native Instruments file, SONG.stem.mp4.
        downmix: Mix more than two channels down to stereo.
        track: Which of a video's audio tracks, counting from 1; None for the default one, or the first that is
            not silent.
        allow_truncated: Separate what can be read of a truncated or damaged song.
        overwrite: Replace existing files; False raises OutputError instead. The command replaces only its own by
            default.

    Raises:
        UsageError: A track below 1.
    """

    stems: str | Sequence[str] | None = None
    out: str | Path = "."
    name: str = NAME_TEMPLATE
    audio_format: str = "wav"
    bit_depth: str | None = None
    bitrate: int | None = None
    rescale: bool = False
    exact_sum: bool = False
    stem_file: bool = False
    downmix: bool = False
    track: int | None = None
    allow_truncated: bool = False
    overwrite: bool = True

    def __post_init__(self) -> None:
        _check_counts(track=self.track)


class RuntimeChoices(TypedDict, total=False):
    """The fields of Runtime as keyword arguments, for type checkers and editors."""

    backend: str
    device: str
    precision: str
    threads: int | None
    batch_size: int | None
    shifts: int
    model_settings: str


class OutputChoices(TypedDict, total=False):
    """The fields of OutputOptions as keyword arguments."""

    stems: str | Sequence[str] | None
    out: str | Path
    name: str
    audio_format: str
    bit_depth: str | None
    bitrate: int | None
    rescale: bool
    exact_sum: bool
    stem_file: bool
    downmix: bool
    track: int | None
    allow_truncated: bool
    overwrite: bool


class Choices(RuntimeChoices, OutputChoices, total=False):
    """The fields of both."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What the server listens to, and its limits.

    Attributes:
        host: Address to listen on. Beyond this machine it needs `token` or `no_auth`.
        port: 0 for any free one.
        token: Password of the page and of the API, at least 16 characters.
        no_auth: Anyone who reaches the server may use it.
        allow_hosts: Domain names that the server is reached by, besides IP addresses and localhost.
        allow_path: Folder whose songs may be named by path in place of an upload.
        data: Folder of the songs and stems; None for one in the platform's data folder.
        jobs: Songs to separate in parallel.
        max_size: MB per song.
        max_minutes: Length of a song.
        max_queue: Songs that may wait.
        time_limit: Minutes that one song may take.
        quota: GB on disk.
        keep: Days that a finished song is kept.

    Raises:
        UsageError: A limit is not positive, the token is too short, or the host needs one.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    no_auth: bool = False
    allow_hosts: Sequence[str] = ()
    allow_path: Path | None = None
    data: Path | None = None
    jobs: int = 1
    max_size: float = 1000
    max_minutes: float = 120
    max_queue: int = 100
    time_limit: float = 60
    quota: float = 20
    keep: float = 30

    def __post_init__(self) -> None:
        for name in ("jobs", "max_size", "max_minutes", "max_queue", "time_limit", "quota", "keep"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if self.token is not None and len(self.token) < _SHORTEST_TOKEN:
            raise UsageError(f"the token must have at least {_SHORTEST_TOKEN} characters")
        if not self.is_local and not self.token and not self.no_auth:
            raise UsageError(
                f"others could use the server at {self.host}: set a password with --token, or use --no-auth"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, kw_only=True)
class LiveTiming:
    """How live separation trades quality and CPU for latency, in seconds.

    Attributes:
        window: What the network sees, up to the newest sample.
        hop: Time between two runs of the network. Shorter hops take more CPU.
        lookahead: What the network hears after a sample before it is played.

    Raises:
        UsageError: A time is not positive, or the look-ahead or the hop exceeds half of the window.
    """

    window: float
    hop: float
    lookahead: float

    def __post_init__(self) -> None:
        if not (
            self.window > 0 and 0 < self.hop <= self.window / 2 and 0 <= self.lookahead <= self.window / 2
        ):
            raise UsageError(
                f"a window of {self.window:g} s does not suit a hop of {self.hop:g} s and a look-ahead of "
                f"{self.lookahead:g} s: each may be at most half of it"
            )


# Measured with training/analysis/live_latency.py; docs/live.md has the table.
LATENCIES = {
    "low": LiveTiming(window=0.35, hop=0.046, lookahead=0.023),
    "normal": LiveTiming(window=0.73, hop=0.085, lookahead=0.093),
    "high": LiveTiming(window=1.47, hop=0.186, lookahead=0.372),
}


def override(options: _Options, choices: Mapping[str, object]) -> _Options:
    """The options with some fields replaced. Raises TypeError for an unknown field, as for an unknown keyword."""
    names = [field.name for field in fields(options)]
    for name in choices:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(names)}"
            raise TypeError(f"unknown option '{name}': {hint}")
    return replace(options, **dict[str, Any](choices))


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and not (isinstance(count, Integral) and count >= 1):
            raise UsageError(f"{name} must be at least 1, not {count!r}")


def take_fields(kind: type[Any], values: dict[str, Any]) -> Mapping[str, Any]:
    """Move the entries of `values` that are fields of the dataclass `kind` into a new dictionary."""
    return {field.name: values.pop(field.name) for field in fields(kind) if field.name in values}
