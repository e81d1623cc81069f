"""Verify model files by size, SHA-256 and first bytes, before any library parses them."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUFFIXES = {".onnx": "onnx", ".safetensors": "torch"}  # suffix of a model file -> its backend
MAX_BYTES = 4 << 30  # of a model of unknown size: a server must not fill the disk
_MAX_HEADER_BYTES = 4 << 20  # of a safetensors file: enough for 40,000 weights
_ZIP, _PICKLE = b"PK", b"\x80"  # how files of torch.save begin, new and old


def digest(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(path: Path, *, size: int, sha256: str) -> str | None:
    """How a file differs from its recorded size (0 if unknown) and SHA-256 ("" if unknown); None if it does not.

    The result is the rest of a sentence.
    """
    try:
        actual_size = path.stat().st_size
        if size and actual_size != size:
            return f"has {actual_size} bytes instead of {size}"
        actual = digest(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return (
        None
        if not sha256 or actual == sha256
        else f"has SHA-256 {actual[:12]}... instead of {sha256[:12]}..."
    )


def header_problem(path: Path) -> str | None:
    """Why a file's first bytes are not those of a model, as the rest of a sentence; None if they are."""
    try:
        if not path.is_file():
            return "is not a file"
        with path.open("rb") as stream:
            head = stream.read(9)
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if head[:2] == _ZIP or head[:1] == _PICKLE:
        return "is a renamed pickle, which could run code"
    if path.suffix == ".safetensors":  # the length of a JSON header, then the header
        length = int.from_bytes(head[:8], "little")
        is_valid = len(head) == 9 and length <= min(size - 8, _MAX_HEADER_BYTES) and head[8:] == b"{"
    else:  # a protobuf whose first field is the number 1, ir_version
        is_valid = head[:1] == b"\x08"
    return None if is_valid else f"is not a valid {path.suffix} file"
