"""A model's name, address or path -> a verified file on this machine.

    models_toml.py   models.toml, the list of models: the package's and the user's
    addresses.py     hf:// and https:// addresses, pinned at first use
    download.py      resume, retry, lock, quarantine
    web.py           which requests are allowed
    integrity.py     size, SHA-256 and first bytes
    folders.py       where files are kept

A file's size and SHA-256 are verified before anything opens it. Weights are .onnx or .safetensors; nothing is
unpickled. Nothing heavy is imported here, so that an unknown model or a damaged file is reported at once.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tfswa_sep.errors import ModelError, UsageError
from tfswa_sep.registry import addresses, download
from tfswa_sep.registry.folders import cache_folder, config_folder, hub_cache_folder, is_offline
from tfswa_sep.registry.integrity import SUFFIXES, damage, digest, header_problem
from tfswa_sep.registry.models_toml import (
    BUNDLED,
    MEAN,
    NO_LICENSE,
    PRECISIONS,
    ModelFile,
    ModelInfo,
    read_models,
    unlisted_model,
)

__all__ = [
    "MEAN", "NO_LICENSE", "SUFFIXES", "WEIGHTS", "ModelFile", "ModelInfo", "cache_folder", "config_folder",
    "default_model", "describe", "digest", "fetch", "fetch_all", "fetch_file", "files_for", "find_model",
    "has_hashes", "hub_cache_folder", "is_first_download", "known_models", "load_registry", "local_path",
    "problem_of", "remove", "with_precision",
]  # fmt: skip

PACKAGE = Path(__file__).resolve().parent.parent
WEIGHTS = PACKAGE / "weights"


def load_registry(path: Path | None = None) -> dict[str, ModelInfo]:
    """The registered models, {name: model}, the default first.

    Args:
        path: A models.toml; None for the package's, overridden by the user's in the settings folder.

    Raises:
        ModelError: A file is missing, not TOML, or has unknown or invalid entries.
    """
    if path is not None:
        return _default_first(read_models(path), path)
    path = PACKAGE / "models.toml"
    models = read_models(path if path.is_file() else PACKAGE.parent / "models.toml")
    own = config_folder() / "models.toml"
    if os.path.isfile(own):  # Path.is_file raises if the folder cannot be read
        added = read_models(own)
        if any(model.default for model in added.values()):
            models = {name: replace(model, default=False) for name, model in models.items()}
        models |= added
    return _default_first({name: addresses.with_records(model) for name, model in models.items()}, own)


def find_model(name_or_path: str | Path) -> ModelInfo:
    """The model with a name, at an hf:// or https:// address, or in an .onnx or .safetensors file.

    Names and paths joined by "+" are an ensemble.

    Raises:
        ModelError: The name is unknown (the message suggests the nearest), the address has no model, or the file is
            missing or not a model.
    """
    models = load_registry()
    name = str(name_or_path)
    if name in models:
        return models[name]
    if addresses.is_address(name):
        return addresses.find(name)
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for unknown users
    if "+" in name and not os.path.isfile(path):
        return _ensemble(name)
    if path.suffix in SUFFIXES or len(path.parts) > 1 or os.path.isfile(path):
        return _local_model(path)
    matches = difflib.get_close_matches(name, models, n=1, cutoff=0.5)
    hint = f"did you mean {matches[0]!r}?" if matches else f"choose from {', '.join(models)}"
    raise ModelError(f"unknown model {name!r}: {hint} (more about them: tfswa-sep models)")


def known_models() -> list[ModelInfo]:
    """The registered models, the default first, and those at addresses used before."""
    registered = load_registry()
    listed = {file.where for model in registered.values() for file in model.files}
    return [*registered.values(), *(model for model in addresses.pinned_models() if model.name not in listed)]


def default_model() -> ModelInfo:
    """The model used if none is named."""
    return next(iter(load_registry().values()))


def with_precision(info: ModelInfo, precision: str, *, prefer_int8: bool = False) -> ModelInfo:
    """The model with only its files of a given precision.

    Args:
        info: The model.
        precision: "fp32", "int8", or "auto" for all files. Files of unknown precision match any.
        prefer_int8: With "auto", int8 files come first rather than last; a backend uses the first of its own.

    Raises:
        UsageError: The precision is unknown.
        ModelError: The model has no file of that precision.
    """
    if info.members:
        members = tuple(with_precision(member, precision, prefer_int8=prefer_int8) for member in info.members)
        files = tuple(file for member in members for file in member.files)
        return replace(info, members=members, files=files)
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"unknown precision {precision!r}: choose from auto, {', '.join(PRECISIONS)}")
    if precision == "auto":
        return replace(
            info, files=tuple(sorted(info.files, key=lambda file: (file.precision == "int8") != prefer_int8))
        )
    files = tuple(file for file in info.files if file.precision in ("", precision))
    if not files:
        available = {file.precision for file in info.files}
        raise ModelError(f"model {info.name!r} has no {precision} file: use --precision {min(available)}")
    return replace(info, files=files)


def files_for(info: ModelInfo, backend: str) -> tuple[ModelFile, ...]:
    """The files that a backend loads: its first one and, if that belongs to a bag, the others of its precision."""
    own = [file for file in info.files if file.backend == backend]
    return tuple(own[:1]) + tuple(
        file for file in own[1:] if file.weights and file.precision == own[0].precision
    )


def fetch(info: ModelInfo, backend: str, *, on_progress: download.Progress | None = None) -> Path:
    """The local path of the first file for a backend, verified; see `fetch_file`.

    Args:
        info: The model.
        backend: "onnx" or "torch".
        on_progress: As for `fetch_file`.

    Raises:
        ModelError: There is no file for the backend, it cannot be downloaded, or it is damaged.
        OutputError: It cannot be saved.
    """
    file = next((file for file in info.files if file.backend == backend), None)
    if file is None:
        available = ", ".join(file.label for file in info.files)
        raise ModelError(f"model {info.name!r} has no file for the {backend} backend, only {available}")
    return fetch_file(info, file, on_progress=on_progress)


def fetch_file(info: ModelInfo, file: ModelFile, *, on_progress: download.Progress | None = None) -> Path:
    """The local path of one of a model's files, verified and, if necessary, downloaded.

    Without a recorded hash, as for a file that the user names, only suffix and first bytes are checked.

    Args:
        info: The model.
        file: One of its files.
        on_progress: Called during a download with the bytes so far and the file's, 0 if unknown.

    Raises:
        ModelError: The file cannot be downloaded, or is damaged.
        OutputError: It cannot be saved.
    """
    if download.is_remote(file.where):
        path = download.fetch(file, name=info.name, on_progress=on_progress)
        if addresses.is_address(info.name) or not file.sha256:
            if problem := header_problem(path):
                raise ModelError(f"{file.where} {problem}; it was not opened")
            addresses.pin(info, file, path)
        return path
    path = local_path(file)
    if not path.is_file() and file.where.startswith("bundled:"):
        raise ModelError(f"the bundled model file {path} is missing: reinstall tfswa-sep")
    if problem := problem_of(file):
        raise ModelError(f"model file {path} {problem}; it was not opened")
    return path


def has_hashes(info: ModelInfo) -> bool:
    """Whether the SHA-256 of all of a model's remote files is known."""
    return all(file.sha256 for file in info.files if download.is_remote(file.where))


def is_first_download(files: Sequence[ModelFile]) -> bool:
    """Whether `fetch` would download files of which nothing is on this machine yet."""
    return not is_offline() and all(
        download.is_remote(file.where) and download.is_new(file) for file in files
    )


def fetch_all(info: ModelInfo, backend: str) -> list[Path]:
    """The local paths of `files_for`, or of all models of an ensemble, verified; see `fetch`."""
    if info.members:
        return [path for member in info.members for path in fetch_all(member, backend)]
    return [fetch_file(info, file) for file in files_for(info, backend)] or [fetch(info, backend)]


def local_path(file: ModelFile) -> Path:
    """Where a model's file is, or will be once downloaded."""
    if match := BUNDLED.fullmatch(file.where):
        return WEIGHTS / match["file"]
    return download.cached_path(file) if download.is_remote(file.where) else Path(file.where)


def problem_of(file: ModelFile) -> str | None:
    """What is wrong with a model's local file, as the rest of a sentence; None if nothing is."""
    path = local_path(file)
    return damage(path, size=file.bytes, sha256=file.sha256) if file.sha256 else header_problem(path)


def remove(name: str) -> list[Path]:
    """Delete a model's downloaded files and, for an address, its pin.

    Returns:
        The deleted files.

    Raises:
        ModelError: The name or address is unknown.
        UsageError: The model is bundled or a local file.
        OutputError: The cache cannot be changed.
    """
    info = addresses.find(name, ask_hub=False) if addresses.is_address(name) else find_model(name)
    remote = [file for file in info.files if download.is_remote(file.where)]
    if not remote:
        raise UsageError(f"{info.name} was not downloaded: it is bundled or a local file")
    removed = [path for file in remote for path in download.remove(file)]
    for address in {info.name, *(file.where for file in remote)}:
        if addresses.is_recorded(address):
            addresses.forget(address)
    return removed


def describe(model: ModelInfo) -> list[tuple[str, str]]:
    """A description for display, as (label, text) lines; unknown facts are left out."""
    size = (f"{file.bytes / 1e6:.1f} MB" if file.bytes else "size unknown" for file in model.files)
    files = (f"{file.label} ({text})" for file, text in zip(model.files, size, strict=True))
    published = ", ".join(f"{stem} {score:.1f} dB" for stem, score in model.published.items())
    factor = model.real_time_factor
    origins = dict.fromkeys(file.where.partition(":")[0] for file in model.files)
    channels = "stereo" if model.channels == 2 else f"{model.channels} channels"
    lines = [
        ("about", model.summary),
        ("stems", ", ".join(model.stems)),
        ("audio", f"{model.sample_rate} Hz, {channels}" if model.sample_rate else ""),
        ("files", f"{', '.join(origins)}: {', '.join(files)}"),
        ("SHA-256", "" if has_hashes(model) else "not published: recorded at the first download"),
        ("speed", f"real-time factor {factor:g} on 2 cores" if factor else ""),
        ("SDR", ", ".join(f"{stem} {score:.1f} dB" for stem, score in model.scores.items())),
        ("published", f"SDR {published}, not measured by us: {model.published_by}" if published else ""),
        ("training", model.training_data),
        ("licence", f"{model.license} (of the weights)"),
    ]
    return [(label, text) for label, text in lines if text]


def _default_first(models: dict[str, ModelInfo], path: Path) -> dict[str, ModelInfo]:
    if sum(model.default for model in models.values()) != 1:
        raise ModelError(f"{path}: exactly one model must have default = true")
    return dict(sorted(models.items(), key=lambda item: not item[1].default))


def _ensemble(name: str) -> ModelInfo:
    members = tuple(find_model(part) for part in name.split("+"))
    files = tuple(file for member in members for file in member.files)
    found = unlisted_model("+".join(member.name for member in members), "the mean of several models", files)
    return replace(found, stems=members[0].stems, members=members)


def _local_model(path: Path) -> ModelInfo:
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path}: model files must be .onnx or .safetensors (other formats can run code when opened)"
        )
    if not os.path.isfile(path):
        raise ModelError(f"no such model file: {path}")
    path = path.resolve()
    file = ModelFile(backend=SUFFIXES[path.suffix], where=str(path), sha256="", bytes=path.stat().st_size)
    return unlisted_model(path.stem, "a local file", (file,))
