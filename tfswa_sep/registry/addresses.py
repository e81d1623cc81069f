"""Models at addresses, which are pinned at first use.

    hf://org/repo                       a Hugging Face repository with one .onnx, one .safetensors or both
    hf://org/repo@revision/file.onnx    one file, from a branch, tag or commit; without @revision from `main`
    https://host/file.onnx              one file on a web server
    https://host/file.onnx#sha256=...   the same, with its hash
    https://user:password@host/file     the password is used, but neither recorded nor printed

Without a hash, an address is trusted on first use, as SSH trusts host keys: its commit, size and SHA-256 are
written to pins.json in the settings folder, and from then on nothing else is accepted, until
`tfswa-sep models rm ADDRESS` deletes the pin.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfswa_sep.audio.atomic_file import write_text
from tfswa_sep.errors import ModelError, OutputError
from tfswa_sep.registry import download, folders, integrity, web
from tfswa_sep.registry.models_toml import ModelFile, ModelInfo, is_allowed_url, suffix_of, unlisted_model

_HUGGING_FACE = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[\w.-]+(?:/[\w.-]+)*))?"
)
_SUMMARY = "a remote file"
_FILE_TYPES = {"backend": str, "where": str, "sha256": str, "bytes": int}


def is_address(text: str) -> bool:
    """Whether text is an address, valid or not, rather than a name or path."""
    return "://" in text


def pinned_models() -> list[ModelInfo]:
    """The models at addresses used before. Raises ModelError if pins.json is damaged."""
    return [unlisted_model(address, _SUMMARY, files) for address, files in _read_pins().items()]


def find(address: str, *, ask_hub: bool = True) -> ModelInfo:
    """The model at an address, as pinned or, at first use, as Hugging Face describes it.

    Args:
        address: See above.
        ask_hub: False if only a pinned address will do.

    Raises:
        ModelError: The address is invalid, the repository is missing or has no model, or the network is down.
    """
    if not address.isprintable() or ".." in re.split(r"[/\\]", address):
        raise ModelError(f"{address!r} is not a valid model address")
    plain, fragment = _split(address)
    if pinned := _read_pins().get(plain):
        files = pinned
    elif plain.startswith("hf://"):
        if not ask_hub:
            raise ModelError(f"{plain} has not been downloaded")
        files = _ask_hub(plain)
    elif not is_allowed_url(plain):
        raise ModelError(f"{plain} is not a valid model address: it must begin with https:// or hf://")
    else:
        files = (ModelFile(_backend_of(plain), plain, "", 0),)
    if fragment:
        files = (_with_hash(files, fragment, plain),)
    return unlisted_model(plain, _SUMMARY, files)


def with_records(model: ModelInfo) -> ModelInfo:
    """A registered model; files that models.toml lists without a hash have that of their first download."""
    if all(file.sha256 or not download.is_remote(file.where) for file in model.files):
        return model
    pins = _read_pins()
    known = {file.where: file for files in pins.values() for file in files if file.sha256}

    def with_record(file: ModelFile) -> ModelFile:
        record = None if file.sha256 else known.get(web.take_credentials(file.where))
        return replace(file, sha256=record.sha256, bytes=record.bytes) if record else file

    return replace(model, files=tuple(map(with_record, model.files)))


def is_recorded(address: str) -> bool:
    """Whether an address has a pin."""
    return _split(address)[0] in _read_pins()


def pin(info: ModelInfo, used: ModelFile, path: Path) -> None:
    """Record the size and hash of the file that an address, or a model listed without a hash, gave.

    Args:
        info: The model.
        used: The file as it was known.
        path: Where it was saved.

    Raises:
        OutputError: The settings folder cannot be written.
    """
    name = where = web.take_credentials(used.where)
    pinned = ModelFile(used.backend, where, integrity.digest(path), path.stat().st_size)
    files: tuple[ModelFile, ...] = (pinned,)
    recorded = _read_pins()
    if is_address(info.name):
        name = info.name
        known = {file.where: file for file in recorded.get(name, ())} | {where: pinned}
        files = tuple(known.get(file.where, file) for file in info.files)
    if recorded.get(name) != files:
        with _changing_pins() as pins:
            pins[name] = files


def forget(address: str) -> bool:
    """Delete the pin of an address; returns whether there was one. Raises OutputError."""
    with _changing_pins() as pins:
        return pins.pop(_split(address)[0], None) is not None


def _split(address: str) -> tuple[str, str]:
    """The address without fragment and password, and the fragment."""
    plain, _, fragment = address.partition("#")
    return web.take_credentials(plain), fragment


def _with_hash(files: tuple[ModelFile, ...], fragment: str, address: str) -> ModelFile:
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    if not match or len(files) != 1:
        raise ModelError(
            f"{address}#{fragment}: expected the address of one file and #sha256= with 64 lower-case hex digits"
        )
    if files[0].sha256 not in ("", match[1]):
        raise ModelError(
            f"{address} was recorded with a different SHA-256 (to reset: tfswa-sep models rm {address})"
        )
    return replace(files[0], sha256=match[1])


def _backend_of(where: str) -> str:
    suffix = suffix_of(where)
    if suffix not in integrity.SUFFIXES:
        raise ModelError(
            f"{where}: model files must be .onnx or .safetensors (other formats can run code when opened)"
        )
    return integrity.SUFFIXES[suffix]


def _ask_hub(address: str) -> tuple[ModelFile, ...]:
    match = _HUGGING_FACE.fullmatch(address)
    if not match:
        raise ModelError(f"{address} is not a valid model address: expected hf://org/repo@revision/file")
    requested = match["file"]
    if requested:
        _backend_of(requested)
    commit, contents = download.list_repository(match["repo"], match["revision"] or "main")
    files: list[ModelFile] = []
    for name, size, sha256 in contents:
        if name == requested or (not requested and suffix_of(name) in integrity.SUFFIXES):
            files.append(ModelFile(_backend_of(name), f"hf://{match['repo']}@{commit}/{name}", sha256, size))
    if not files:
        raise ModelError(f"{address} has no {requested or '.onnx or .safetensors file'}")
    if len({file.backend for file in files}) < len(files):
        raise ModelError(
            f"{address} has several models: add the file name, as in {address}/{files[0].where.split('/', 4)[4]}"
        )
    return tuple(files)


def _pins_file() -> Path:
    return folders.config_folder() / "pins.json"


def _read_pins() -> dict[str, tuple[ModelFile, ...]]:
    path = _pins_file()
    if not os.access(path.parent, os.X_OK):  # missing or not accessible
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {
            web.take_credentials(address): tuple(_pinned_file(file) for file in files)
            for address, files in document.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"{path} is damaged ({error}): repair it, or delete it to reset all recorded hashes"
        ) from error


def _as_pin(file: ModelFile) -> dict[str, Any]:
    return {key: getattr(file, key) for key in _FILE_TYPES}


def _pinned_file(fields: Any) -> ModelFile:
    if {key: type(value) for key, value in fields.items()} != _FILE_TYPES:
        raise ValueError("a file has unexpected fields")
    file = ModelFile(**{**fields, "where": web.take_credentials(fields["where"])})
    is_valid = file.where.startswith("hf://") or is_allowed_url(file.where)
    if (
        not is_valid
        or ".." in file.where
        or not re.fullmatch(r"([0-9a-f]{64})?", file.sha256)
        or file.bytes < 0
    ):
        raise ValueError(f"invalid: {file.where!r}")
    if integrity.SUFFIXES.get(suffix_of(file.where)) != file.backend:
        raise ValueError(f"invalid: {file.where!r}")
    return file


@contextmanager
def _changing_pins() -> Iterator[dict[str, tuple[ModelFile, ...]]]:
    """The pins, to be changed within the context; locked against other processes and then written back."""
    path = _pins_file()
    try:
        with download.lock(path.with_suffix(".lock")):
            pins = _read_pins()
            before = dict(pins)
            yield pins
            if pins != before:
                document = {address: [_as_pin(file) for file in files] for address, files in pins.items()}
                write_text(path, json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; set TFSWA_CONFIG to another folder"
        ) from error
