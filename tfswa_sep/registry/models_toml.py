"""Read models.toml strictly: anything unknown or invalid is an error that names the file and the model.

where = "bundled:small.onnx"               in the package, under tfswa_sep/weights/
        "hf://org/repo@<commit>/file"      a Hugging Face repository at a 40-digit commit
        "https://host/file"                any web server (http:// only for localhost)
        "folder/file.onnx"                 a path, relative to the folder of models.toml

Files with `weights` are a bag: all of one backend and precision run, and weights = [1, 0, 0, 0] are one file's shares
of the stems. A table [models.NAME.settings] supplies what a file's own metadata lacks, as `--model-settings` does.

sha256 and bytes of a remote file may be left out; then they are recorded at its first download. [models.NAME.scores]
are our own measurements, [models.NAME.published] are others', with their `source`: dB by stem, or "mean" of all stems.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tfswa_sep.errors import ModelError
from tfswa_sep.registry.integrity import SUFFIXES

HUGGING_FACE = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})/(?P<file>[\w.-]+(?:/[\w.-]+)*)"
)
BUNDLED = re.compile(r"bundled:(?P<file>[A-Za-z0-9_][A-Za-z0-9._-]*)")

_REQUIRED_KEYS = {"summary", "stems", "sample_rate", "channels", "license", "training_data", "files"}
_OPTIONAL_KEYS = {"default", "scores", "settings", "published", "real_time_factor"}
_FILE_KEYS = {"backend", "where"}
_OPTIONAL_FILE_KEYS = {"sha256", "bytes", "precision", "weights"}
MEAN = "mean"  # of all stems, in place of a stem
NO_LICENSE = "none stated"
PRECISIONS = ("fp32", "int8")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STEM = re.compile(rf"{_NAME.pattern}(\+{_NAME.pattern})*")  # or a sum of stems
_MAX_BYTES = 1 << 20  # of a models.toml
_MAX_INTEGER = 1 << 53  # exact in any JSON reader


@dataclass(frozen=True)
class ModelFile:
    """One file of a model, for one backend."""

    backend: str  # "onnx" or "torch"
    where: str  # see the module's docstring
    sha256: str  # 64 hexadecimal digits; "" if unknown
    bytes: int  # 0 if unknown
    precision: str = ""  # one of PRECISIONS; "" if unknown
    weights: tuple[float, ...] = ()  # in a bag: this file's share of each stem

    @property
    def label(self) -> str:
        """Backend and, if known, precision, such as "onnx int8"."""
        return f"{self.backend} {self.precision}".strip()


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model without opening its files."""

    name: str  # for an unlisted model, its address or its file's stem
    summary: str
    stems: tuple[str, ...]  # () for an unlisted model: its file says
    sample_rate: int  # Hz; 0 for an unlisted model
    channels: int  # 0 for an unlisted model
    license: str  # NO_LICENSE if the publisher states none
    training_data: str
    files: tuple[ModelFile, ...]
    scores: dict[str, float]  # stem -> global SDR in dB, measured by us
    default: bool
    settings: dict[str, str] = field(default_factory=dict)  # what the files' own metadata lacks
    published: dict[str, float] = field(default_factory=dict)  # stem or MEAN -> SDR in dB, measured by others
    published_by: str = ""  # who measured those, and on which songs
    real_time_factor: float = 0.0  # seconds of computing per second of music on 2 cores; 0 if not measured
    members: tuple[ModelInfo, ...] = ()  # of an ensemble, which has their files


def unlisted_model(name: str, summary: str, files: tuple[ModelFile, ...]) -> ModelInfo:
    """A model that no models.toml lists, such as one that the user names by path or address."""
    return ModelInfo(
        name=name,
        summary=summary,
        stems=(),
        sample_rate=0,
        channels=0,
        license="unknown",
        training_data="unknown",
        files=files,
        scores={},
        default=False,
    )


def read_models(path: Path) -> dict[str, ModelInfo]:
    """The models of a models.toml, in its order. Raises ModelError for anything unknown or invalid."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path}: larger than {_MAX_BYTES >> 20} MB")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, not TOML, or too long a number
        raise ModelError(f"cannot read {path}: {error}") from error
    if document.keys() != {"models"} or not isinstance(document["models"], dict):
        raise ModelError(f"{path}: expected tables [models.NAME] and nothing else")
    return {name: _parse_model(name, table, path) for name, table in document["models"].items()}


def is_allowed_url(url: str) -> bool:
    """Whether a URL is https://, or http:// to localhost."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "https":
            return bool(parts.hostname)
        return parts.scheme == "http" and (
            parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
        )
    except ValueError:
        return False


def parse_file(table: Any, owner: str, folder: Path) -> ModelFile:
    """Parse one [[models.NAME.files]] entry, with paths relative to `folder`. Raises ModelError."""
    _check_keys(table, _FILE_KEYS, f"{owner}: a file", optional=_OPTIONAL_FILE_KEYS)
    backend, where = (_typed(table, key, str, owner) for key in ("backend", "where"))
    given = {"sha256": "", "bytes": 0, "precision": "fp32"} | table
    sha256, size = _typed(given, "sha256", str, owner), _typed(given, "bytes", int, owner)
    precision = _typed(given, "precision", str, owner)
    if precision not in PRECISIONS:
        raise ModelError(f"{owner}: unknown precision {precision!r}")
    if backend not in SUFFIXES.values():
        raise ModelError(f"{owner}: unknown backend {backend!r}")
    needed = {"sha256", "bytes"} & (table.keys() if "://" in where else {"sha256", "bytes"})
    if ("sha256" in needed and not re.fullmatch(r"[0-9a-f]{64}", sha256)) or ("bytes" in needed and not size):
        raise ModelError(
            f"{owner}: {where!r} needs a sha256 (64 lower-case hex digits) and its size in bytes"
        )
    if suffix_of(where) not in SUFFIXES or SUFFIXES[suffix_of(where)] != backend:
        raise ModelError(f"{owner}: {where!r} must end in .onnx (onnx) or .safetensors (torch)")
    if ".." in re.split(r"[/\\]", where.partition("://")[2] or where.removeprefix("bundled:")):
        raise ModelError(f"{owner}: {where!r} must not contain '..'")
    if where.startswith("bundled:") and not BUNDLED.fullmatch(where):
        raise ModelError(f"{owner}: {where!r} must be bundled: followed by a file name")
    if where.startswith("hf:") and not HUGGING_FACE.fullmatch(where):
        raise ModelError(f"{owner}: {where!r} must be hf://org/repo@commit/file with a 40-digit commit")
    if "://" in where and not where.startswith("hf:") and not is_allowed_url(where):
        raise ModelError(f"{owner}: {where!r} must be an https:// address")
    if where.startswith(("\\\\", "//")):  # Windows would send the user's password hash there
        raise ModelError(f"{owner}: {where!r} must not be a network share")
    if "://" not in where and not where.startswith("bundled:"):
        where = str(folder / where)
    weights = _typed({"weights": table.get("weights", [])}, "weights", list, owner)
    if not all(type(weight) in (int, float) and 0 <= weight <= 1 for weight in weights):
        raise ModelError(f"{owner}: weights must be numbers from 0 to 1")
    return ModelFile(
        backend=backend,
        where=where,
        sha256=sha256,
        bytes=size,
        precision=precision,
        weights=tuple(map(float, weights)),
    )


def suffix_of(where: str) -> str:
    """The file suffix of a URL or path."""
    try:
        return Path(urlsplit(where).path if "://" in where else where).suffix
    except ValueError:  # not a URL, such as http://[
        return ""


def _parse_model(name: str, table: Any, path: Path) -> ModelInfo:
    where = f"{path}: model {name!r}"
    if not _NAME.fullmatch(name):
        raise ModelError(f"{where}: a name is at most 64 letters, digits, '.', '_' and '-'")
    _check_keys(table, _REQUIRED_KEYS, where, optional=_OPTIONAL_KEYS)
    files = _typed(table, "files", list, where)
    scores = _typed({"scores": table.get("scores", {})}, "scores", dict, where)
    published = _typed({"published": table.get("published", {})}, "published", dict, where)
    source = _typed(published, "source", str, where) if published else ""
    figures = {stem: score for stem, score in published.items() if stem != "source"}
    for score in (*scores.values(), *figures.values()):
        if type(score) not in (int, float) or not abs(score) < 1000:
            raise ModelError(f"{where}: scores must be numbers in dB")
    factor = table.get("real_time_factor", 0)
    if type(factor) not in (int, float) or not 0 <= factor < 1000:
        raise ModelError(f"{where}: real_time_factor must be seconds of computing per second of music")
    stems = tuple(_typed(table, "stems", list, where))
    if not stems or not all(
        isinstance(stem, str) and _STEM.fullmatch(stem) for stem in (*stems, *scores, *figures)
    ):
        raise ModelError(f"{where}: stems must be a list of names")
    if not files:
        raise ModelError(f"{where}: there must be at least one file")
    parsed = tuple(parse_file(file, where, path.parent) for file in files)
    _check_weights(parsed, stems, where)
    settings = _typed({"settings": table.get("settings", {})}, "settings", dict, where)
    return ModelInfo(
        name=name,
        summary=_typed(table, "summary", str, where),
        stems=stems,
        sample_rate=_typed(table, "sample_rate", int, where),
        channels=_typed(table, "channels", int, where),
        license=_typed(table, "license", str, where),
        training_data=_typed(table, "training_data", str, where),
        files=parsed,
        scores={stem: float(score) for stem, score in scores.items()},
        default=_typed({"default": table.get("default", False)}, "default", bool, where),
        settings={key: _setting(settings, key, where) for key in settings},
        published={stem: float(score) for stem, score in figures.items()},
        published_by=source,
        real_time_factor=float(factor),
    )


def _setting(table: dict[str, Any], key: str, where: str) -> str:
    """A setting as text, in the form in which a file's metadata would have it."""
    value = table[key]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ModelError(f"{where}: the setting {key} must be a string, a number or a list of strings")
    return str(value)


def _check_weights(files: tuple[ModelFile, ...], stems: tuple[str, ...], where: str) -> None:
    """Raise ModelError unless the files of a bag all have weights, which give every stem."""
    for kind in dict.fromkeys((file.backend, file.precision) for file in files):
        bag = [file.weights for file in files if (file.backend, file.precision) == kind]
        if not any(bag):
            continue
        if any(len(weights) != len(stems) for weights in bag):
            raise ModelError(f"{where}: each file of a bag needs one weight per stem")
        if not all(map(any, zip(*bag, strict=True))):
            raise ModelError(f"{where}: one stem has no weight above 0 in any file")


def _check_keys(table: Any, required: set[str], where: str, *, optional: Set[str] = frozenset()) -> None:
    if not isinstance(table, dict):
        raise ModelError(f"{where}: expected a table")
    if unknown := sorted(table.keys() - required - optional):
        raise ModelError(f"{where}: unknown key {unknown[0]!r}")
    if missing := sorted(required - table.keys()):
        raise ModelError(f"{where}: the key {missing[0]!r} is missing")


def _typed(table: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in table:
        raise ModelError(f"{where}: the key {key!r} is missing")
    value = table[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelError(f"{where}: {key} must be of type {kind.__name__}")
    if isinstance(value, str) and not value.isprintable():  # may be printed in a terminal or name a file
        raise ModelError(f"{where}: {key} must be one line without control characters")
    if isinstance(value, int) and not 0 <= value <= _MAX_INTEGER:
        raise ModelError(f"{where}: {key} is out of range")
    return value
