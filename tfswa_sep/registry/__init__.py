"""A model's name, address or path -> a verified file on this machine.

    models_toml.py   a list of models: the one in the package, and the user's own
    addresses.py     hf:// and https:// addresses that the user names, pinned when they are first used
    download.py      the network: resume, retry, lock, quarantine (web.py: which requests may leave)
    integrity.py     size, SHA-256 and first bytes
    folders.py       where all of that lies

Whatever its way here, a file has the recorded size and SHA-256 before anything opens it. Nothing is
unpickled: weights are .onnx or .safetensors.
Nothing heavy is imported here, so that an unknown model or a damaged file is told at once.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from pathlib import Path

from tfswa_sep.errors import ModelError, UsageError
from tfswa_sep.registry import addresses, download
from tfswa_sep.registry.folders import cache_folder, config_folder, hub_cache_folder
from tfswa_sep.registry.integrity import SUFFIXES, damage, digest, header_problem
from tfswa_sep.registry.models_toml import (
    BUNDLED,
    PRECISIONS,
    ModelFile,
    ModelInfo,
    read_models,
    unlisted_model,
)

__all__ = [
    "SUFFIXES", "WEIGHTS", "ModelFile", "ModelInfo", "cache_folder", "config_folder", "default_model",
    "describe", "digest", "fetch", "find_model", "hub_cache_folder", "known_models", "load_registry",
    "local_path", "problem_of", "remove", "with_precision",
]  # fmt: skip

PACKAGE = Path(__file__).resolve().parent.parent
WEIGHTS = PACKAGE / "weights"


def load_registry(path: Path | None = None) -> dict[str, ModelInfo]:
    """The models that have a name: {name: model}, the default model first.

    path: a models.toml; None: the one in the package (a wheel has it there, a checkout beside it), and over
    it the user's own in the folder for settings, whose default comes before ours.
    Raises ModelError for a file that is not there, is not TOML, or says anything that is not understood.
    """
    if path is not None:
        return _default_first(read_models(path), path)
    path = PACKAGE / "models.toml"
    models = read_models(path if path.is_file() else PACKAGE.parent / "models.toml")
    own = config_folder() / "models.toml"
    if os.path.isfile(own):  # a Path raises for a folder that may not be read
        added = read_models(own)
        if any(model.default for model in added.values()):
            models = {name: replace(model, default=False) for name, model in models.items()}
        models |= added
    return _default_first(models, own)


def find_model(name_or_path: str | Path) -> ModelInfo:
    """The model of that name, at that hf:// or https:// address, or in that .onnx or .safetensors file.

    Raises ModelError for an unknown name, with the nearest one, for an address that has no model, and for a
    file that is not there or no model.
    """
    models = load_registry()
    name = str(name_or_path)
    if name in models:
        return models[name]
    if addresses.is_address(name):
        return addresses.find(name)
    path = Path(os.path.expanduser(name))  # a Path raises for users that are not there
    if path.suffix in SUFFIXES or len(path.parts) > 1 or os.path.isfile(path):
        return _local_model(path)
    near = difflib.get_close_matches(name, models, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"available: {', '.join(models)}"
    raise ModelError(f"unknown model {name!r}: {hint} (list them: tfswa-sep models)")


def known_models() -> list[ModelInfo]:
    """The models that have a name, the default first, and those at addresses that were used before."""
    return [*load_registry().values(), *addresses.pinned_models()]


def default_model() -> ModelInfo:
    """The model that is taken when nobody names one."""
    return next(iter(load_registry().values()))


def with_precision(info: ModelInfo, precision: str, *, prefer_int8: bool = False) -> ModelInfo:
    """The model with those of its files alone that compute in `precision`.

    precision: "fp32", "int8", or "auto": all files, those in int8 first if `prefer_int8`, else last. The
    backend is chosen afterwards, and takes the first of its own.
    A file whose precision nobody recorded is taken for whatever was asked for.
    Raises UsageError for another precision, ModelError for one that the model has no file for.
    """
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"unknown precision {precision!r}: choose from auto, {', '.join(PRECISIONS)}")
    if precision == "auto":
        return replace(
            info, files=tuple(sorted(info.files, key=lambda file: (file.precision == "int8") != prefer_int8))
        )
    files = tuple(file for file in info.files if file.precision in ("", precision))
    if not files:
        offered = {file.precision for file in info.files}
        raise ModelError(f"model {info.name!r} has no {precision} file: use --precision {min(offered)}")
    return replace(info, files=files)


def fetch(info: ModelInfo, backend: str) -> Path:
    """The model's file for `backend` ("onnx" or "torch"), here, with the recorded size and SHA-256.

    A file that the user named has no recorded hash: only its suffix and its first bytes are looked at.
    Raises ModelError: no file for that backend, cannot be fetched, or damaged. OutputError: cannot be kept.
    """
    file = next((file for file in info.files if file.backend == backend), None)
    if file is None:
        available = ", ".join(file.label for file in info.files)
        raise ModelError(f"model {info.name!r} has no file for the {backend} backend, only {available}")
    if download.is_remote(file.where):
        path = download.fetch(file)
        if addresses.is_address(info.name):
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


def local_path(file: ModelFile) -> Path:
    """Where a model's file lies on this machine, or would lie once it is fetched."""
    if match := BUNDLED.fullmatch(file.where):
        return WEIGHTS / match["file"]
    return download.cached_path(file) if download.is_remote(file.where) else Path(file.where)


def problem_of(file: ModelFile) -> str | None:
    """What is wrong with a model's file that is on this machine, as the rest of a sentence; None: nothing."""
    path = local_path(file)
    return damage(path, size=file.bytes, sha256=file.sha256) if file.sha256 else header_problem(path)


def remove(name: str) -> list[Path]:
    """Delete what was downloaded of a model, and forget the pin of an address. Returns what was deleted.

    Raises ModelError for an unknown name or address, UsageError for a model that comes with tfswa-sep or is
    a file of the user's own, OutputError if the cache cannot be changed.
    """
    info = addresses.find(name, ask_hub=False) if addresses.is_address(name) else find_model(name)
    remote = [file for file in info.files if download.is_remote(file.where)]
    if not remote:
        raise UsageError(f"{info.name} was not downloaded: it is bundled or a local file")
    removed = [path for file in remote for path in download.remove(file)]
    if addresses.is_address(info.name):
        addresses.forget(info.name)
    return removed


def describe(model: ModelInfo) -> list[tuple[str, str]]:
    """(label, text) lines for a person; what is not known is left out."""
    size = (f"{file.bytes / 1e6:.1f} MB" if file.bytes else "size unknown" for file in model.files)
    files = (f"{f.label}, {mb}, {f.where.partition(':')[0]}" for f, mb in zip(model.files, size, strict=True))
    channels = "stereo" if model.channels == 2 else f"{model.channels} channels"
    lines = [
        ("about", model.summary),
        ("stems", ", ".join(model.stems)),
        ("audio", f"{model.sample_rate} Hz, {channels}" if model.sample_rate else ""),
        ("files", "; ".join(files)),
        ("quality", ", ".join(f"{stem} {score:.1f} dB" for stem, score in model.scores.items())),
        ("trained", model.training_data),
        ("licence", f"{model.license} (of the weights)"),
    ]
    return [(label, text) for label, text in lines if text]


def _default_first(models: dict[str, ModelInfo], path: Path) -> dict[str, ModelInfo]:
    if sum(model.default for model in models.values()) != 1:
        raise ModelError(f"{path}: exactly one model must have default = true")
    return dict(sorted(models.items(), key=lambda item: not item[1].default))


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
