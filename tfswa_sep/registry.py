"""models.toml -> a verified file on this machine.

    where = "bundled:small.onnx"               in the package, under tfswa_sep/weights/
            "hf://org/repo@<commit>/file"      a Hugging Face repository at one 40-digit commit
            "https://host/file"                any web server (http:// only for this machine itself)
            "folder/file.onnx"                 a path; a relative one starts at the folder of models.toml

Whatever its way here, a file has the recorded size and SHA-256 before anything opens it. Nothing is
unpickled: weights are .onnx or .safetensors. Downloads are kept in TFSWA_CACHE, or else in the platform's
folder for caches.
Nothing heavy is imported here, so that an unknown model or a damaged file is told at once.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tomllib
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tfswa_sep import download
from tfswa_sep.errors import ModelError

PACKAGE = Path(__file__).resolve().parent
WEIGHTS = PACKAGE / "weights"
SUFFIXES = {".onnx": "onnx", ".safetensors": "torch"}  # of a model file -> the backend that runs it

_REQUIRED_KEYS = {"summary", "stems", "sample_rate", "channels", "license", "training_data", "files"}
_OPTIONAL_KEYS = {"default", "scores"}
_FILE_KEYS = {"backend", "where", "sha256", "bytes"}
_BUNDLED = re.compile(r"bundled:(?P<file>[A-Za-z0-9_][A-Za-z0-9._-]*)")
_HUGGING_FACE = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})/(?P<file>[\w.-]+(?:/[\w.-]+)*)"
)


@dataclass(frozen=True)
class ModelFile:
    """One file of a model, for one backend."""

    backend: str  # "onnx" or "torch"
    where: str  # see the head of this module
    sha256: str  # 64 hexadecimal digits; "" for a file that the user names, which nobody recorded
    bytes: int


@dataclass(frozen=True)
class ModelInfo:
    """What the registry knows of a model without opening its files."""

    name: str
    summary: str
    stems: tuple[str, ...]  # () for a file that the user names: the file itself says
    sample_rate: int  # Hz; 0 for a file that the user names
    channels: int  # 0 for a file that the user names
    license: str
    training_data: str
    files: tuple[ModelFile, ...]
    scores: dict[str, float]  # stem -> global SDR in dB
    default: bool


def load_registry(path: Path | None = None) -> dict[str, ModelInfo]:
    """Read models.toml: {name: model}, the default model first.

    path: the file; None: the one in the package (a wheel has it there), else the one beside it (a checkout).
    Raises ModelError for a file that is not there, is not TOML, or says anything that is not understood.
    """
    if path is None:
        path = PACKAGE / "models.toml"
        if not path.is_file():
            path = PACKAGE.parent / "models.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if document.keys() != {"models"} or not isinstance(document["models"], dict):
        raise ModelError(f"{path}: expected tables [models.NAME] and nothing else")
    models = {name: _parse_model(name, table, path) for name, table in document["models"].items()}
    if sum(model.default for model in models.values()) != 1:
        raise ModelError(f"{path}: exactly one model must say default = true")
    return dict(sorted(models.items(), key=lambda item: not item[1].default))


def find_model(name_or_path: str | Path) -> ModelInfo:
    """The model of that name in the registry, or the one in that .onnx or .safetensors file.

    Raises ModelError for an unknown name, with the nearest one, and for a file that is not there or no model.
    """
    models = load_registry()
    name = str(name_or_path)
    if name in models:
        return models[name]
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES or len(path.parts) > 1 or path.is_file():
        return _local_model(path)
    near = difflib.get_close_matches(name, models, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(models)}"
    raise ModelError(f"unknown model {name!r}: {hint} (list them: tfswa-sep models)")


def default_model() -> ModelInfo:
    """The model that is taken when nobody names one."""
    return next(iter(load_registry().values()))


def fetch(info: ModelInfo, backend: str) -> Path:
    """The model's file for `backend` ("onnx" or "torch"), here, with the recorded size and SHA-256.

    A file that the user named has no recorded hash: only its suffix and its first bytes are looked at.
    Raises ModelError: no file for that backend, cannot be fetched, or damaged.
    """
    file = next((file for file in info.files if file.backend == backend), None)
    if file is None:
        there = ", ".join(file.backend for file in info.files)
        raise ModelError(f"model {info.name!r} has no file for the {backend} backend, only for {there}")
    if match := _BUNDLED.fullmatch(file.where):
        path = WEIGHTS / match["file"]
        if not path.is_file():
            raise ModelError(f"the bundled model file {path} is missing: install tfswa-sep again")
    elif match := _HUGGING_FACE.fullmatch(file.where):
        return download.from_hugging_face(
            **match.groupdict(), into=cache_folder(), size=file.bytes, sha256=file.sha256
        )
    elif "://" in file.where:
        return download.from_url(file.where, into=cache_folder(), size=file.bytes, sha256=file.sha256)
    else:
        path = Path(file.where)
    problem = download.damage(path, size=file.bytes, sha256=file.sha256) if file.sha256 else _wrong_head(path)
    if problem:
        raise ModelError(f"model file {path} {problem}; it was not opened")
    return path


def cache_folder() -> Path:
    """Where downloads are kept: TFSWA_CACHE, else tfswa-sep in the platform's folder for caches."""
    if chosen := os.environ.get("TFSWA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tfswa-sep"


def describe(model: ModelInfo) -> list[tuple[str, str]]:
    """(label, text) lines for a person; what is not known is left out."""
    files = (f"{f.backend}, {f.bytes / 1e6:.1f} MB, {f.where.partition(':')[0]}" for f in model.files)
    lines = [
        ("about", model.summary),
        ("stems", ", ".join(model.stems)),
        (
            "audio",
            f"{model.sample_rate} Hz, {'stereo' if model.channels == 2 else f'{model.channels} channels'}",
        ),
        ("files", "; ".join(files)),
        ("quality", ", ".join(f"{stem} {score:.1f} dB" for stem, score in model.scores.items())),
        ("trained", model.training_data),
        ("licence", model.license),
    ]
    return [(label, text) for label, text in lines if text]


def _parse_model(name: str, table: Any, path: Path) -> ModelInfo:
    where = f"{path}: model {name!r}"
    _check_keys(table, _REQUIRED_KEYS, where, optional=_OPTIONAL_KEYS)
    files = _typed(table, "files", list, where)
    scores = _typed({"scores": table.get("scores", {})}, "scores", dict, where)
    if not all(isinstance(score, int | float) for score in scores.values()):
        raise ModelError(f"{where}: scores must be numbers")
    stems = tuple(_typed(table, "stems", list, where))
    if not stems or not all(isinstance(stem, str) for stem in stems):
        raise ModelError(f"{where}: stems must be a list of names")
    if not files:
        raise ModelError(f"{where}: there must be at least one file")
    return ModelInfo(
        name=name,
        summary=_typed(table, "summary", str, where),
        stems=stems,
        sample_rate=_typed(table, "sample_rate", int, where),
        channels=_typed(table, "channels", int, where),
        license=_typed(table, "license", str, where),
        training_data=_typed(table, "training_data", str, where),
        files=tuple(_parse_file(file, where, path.parent) for file in files),
        scores={stem: float(score) for stem, score in scores.items()},
        default=_typed({"default": table.get("default", False)}, "default", bool, where),
    )


def _parse_file(table: Any, owner: str, folder: Path) -> ModelFile:
    _check_keys(table, _FILE_KEYS, f"{owner}: a file")
    backend, where = (_typed(table, key, str, owner) for key in ("backend", "where"))
    sha256, size = _typed(table, "sha256", str, owner), _typed(table, "bytes", int, owner)
    if backend not in SUFFIXES.values():
        raise ModelError(f"{owner}: unknown backend {backend!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or size <= 0:
        raise ModelError(f"{owner}: {where!r} needs its sha256 (64 digits, a to f small) and its bytes")
    if ".." in re.split(r"[/\\]", where.partition("://")[2] or where.removeprefix("bundled:")):
        raise ModelError(f"{owner}: {where!r} must not climb with '..'")
    if where.startswith("bundled:") and not _BUNDLED.fullmatch(where):
        raise ModelError(f"{owner}: {where!r} must be bundled: and a bare file name")
    if where.startswith("hf:") and not _HUGGING_FACE.fullmatch(where):
        raise ModelError(f"{owner}: {where!r} must be hf://org/repo@commit/file, the commit with 40 digits")
    if "://" in where and not where.startswith("hf:") and not download.is_allowed_url(where):
        raise ModelError(f"{owner}: {where!r} must be an https:// address")
    if SUFFIXES.get(Path(urlsplit(where).path if "://" in where else where).suffix) != backend:
        raise ModelError(f"{owner}: {where!r} must end in .onnx for onnx, in .safetensors for torch")
    if "://" not in where and not where.startswith("bundled:"):
        where = str(folder / where)
    return ModelFile(backend=backend, where=where, sha256=sha256, bytes=size)


def _check_keys(table: Any, required: set[str], where: str, *, optional: Set[str] = frozenset()) -> None:
    if not isinstance(table, dict):
        raise ModelError(f"{where}: expected a table")
    if unknown := sorted(table.keys() - required - optional):
        raise ModelError(f"{where}: unknown key {unknown[0]!r}")
    if missing := sorted(required - table.keys()):
        raise ModelError(f"{where}: the key {missing[0]!r} is missing")


def _typed(table: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = table[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelError(f"{where}: {key} must be of the type {kind.__name__}")
    return value


def _local_model(path: Path) -> ModelInfo:
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path}: a model file is .onnx or .safetensors (others can run code when opened)")
    if not path.is_file():
        raise ModelError(f"no such model file: {path}")
    path = path.resolve()
    file = ModelFile(backend=SUFFIXES[path.suffix], where=str(path), sha256="", bytes=path.stat().st_size)
    return ModelInfo(
        name=path.stem,
        summary="a file of yours",
        stems=(),
        sample_rate=0,
        channels=0,
        license="unknown",
        training_data="unknown",
        files=(file,),
        scores={},
        default=False,
    )


def _wrong_head(path: Path) -> str | None:
    """What the first bytes of a file without a recorded hash say against it; None: nothing."""
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "is a pickle with another suffix, which could run code"
    if path.suffix == ".safetensors":  # the length of a JSON header, then the header
        right = len(head) == 9 and int.from_bytes(head[:8], "little") <= size - 8 and head[8:] == b"{"
    else:  # a protobuf whose first field is the number 1, ir_version
        right = head[:1] == b"\x08"
    return None if right else f"is no {path.suffix} file, or it is damaged"
