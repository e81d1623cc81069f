"""A model file's metadata: one JSON object under the key "tfswa_sep", in ONNX and safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tfswa_sep.errors import ModelError
from tfswa_sep.model.config import ModelConfig

KEY = "tfswa_sep"
FORMAT = 2  # in format 1 the masks were part of the ONNX graph
# Stems, or sums such as drums+bass. They become file names: no dots, no slashes.
_STEM = re.compile(r"[a-z][a-z0-9_-]*(\+[a-z][a-z0-9_-]*)*")
_MAX_STEM_NAME = 48  # characters: leaves room in a file name for the song's
T = TypeVar("T")

# Limits on what a hostile file can claim:
MAX_SEGMENT = 1 << 24  # samples, 6 minutes at 44.1 kHz
_MAX_SPECTROGRAM = 1 << 26  # frames times n_fft, half a gigabyte per channel


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What a model takes and returns."""

    name: str
    license: str
    config: dict[str, Any]  # ModelConfig.to_json
    stems: tuple[str, ...]
    sample_rate: int  # Hz
    channels: int
    n_fft: int  # samples
    hop: int  # samples
    segment_samples: int  # samples per segment
    margin_samples: int  # samples of context discarded at each end of a segment


def parse_metadata(text: str | None, *, file: str) -> ModelMetadata:
    """Read and check metadata.

    Args:
        text: The JSON; None if the file has none.
        file: Its name, for errors.

    Raises:
        ModelError: The metadata is missing, invalid or of another format.
    """
    return read_fields(text, _own_metadata, file=file, version=FORMAT)


def read_fields(text: str | None, parse: Callable[[dict[str, Any]], T], *, file: str, version: int) -> T:
    """Read metadata of a given format.

    Args:
        text: The JSON; None if the file has none.
        parse: Makes a result of the fields; it may raise what wrong fields make it raise.
        file: Its name, for errors.
        version: The format that is supported.

    Raises:
        ModelError: The metadata is missing, invalid or of another format.
    """
    if not text:
        raise ModelError(f"{file} is not a tfswa-sep model: it has no '{KEY}' metadata")
    try:
        fields = json.loads(text)
        if (found := fields["format"]) != version:
            is_old = isinstance(found, int) and found < version
            advice = "download or export the model again" if is_old else "update tfswa-sep"
            raise ModelError(
                f"{file} has metadata format {found!r}, but only {version} is supported: {advice}"
            )
        return parse(fields)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = "not JSON" if isinstance(error, json.JSONDecodeError) else f"at {error}"
        raise ModelError(
            f"{file} is damaged or not a tfswa-sep model: its metadata is invalid ({reason})"
        ) from None


def _own_metadata(fields: dict[str, Any]) -> ModelMetadata:
    metadata = ModelMetadata(
        name=str(fields.get("name", "")),
        license=str(fields.get("license", "")),
        config=dict(fields.get("config", {})),
        stems=stem_names(fields["stems"]),
        sample_rate=integer(fields, "sample_rate", 8_000, 192_000),
        channels=integer(fields, "channels", 2, 2),
        n_fft=integer(fields, "n_fft", 64, 1 << 15),
        hop=integer(fields, "hop", 16, 1 << 15),
        segment_samples=integer(fields, "segment_samples", 64, MAX_SEGMENT),
        margin_samples=integer(fields, "margin_samples", 0, MAX_SEGMENT),
    )
    check_transform(metadata.n_fft, metadata.hop, frames=metadata.segment_samples // metadata.hop + 1)
    if 2 * metadata.margin_samples >= metadata.segment_samples:
        raise ValueError("margin_samples")
    return metadata


def stem_names(names: Any) -> tuple[str, ...]:
    """A model's stems. Raises ValueError or TypeError if they are none, repeated or no names."""
    stems = tuple(names)
    if not stems or len(set(stems)) < len(stems) or not all(map(is_stem_name, stems)):
        raise ValueError("stems")
    return stems


def check_transform(n_fft: int, hop: int, *, frames: int, any_hop: bool = False) -> None:
    """Raise ValueError unless frames of n_fft samples every hop samples can be inverted and are not too many.

    With `any_hop`, hops of up to half a frame; otherwise they must divide it.
    """
    if n_fft % 2 or (2 * hop > n_fft if any_hop else n_fft % hop):
        raise ValueError("hop")
    if frames * n_fft > _MAX_SPECTROGRAM:
        raise ValueError("segment_samples")


def is_stem_name(name: str) -> bool:
    """Whether a name is lower-case letters, digits, - and _, or a sum of such names."""
    return len(name) <= _MAX_STEM_NAME and _STEM.fullmatch(name) is not None


def contradicts(metadata: ModelMetadata, config: ModelConfig) -> bool:
    """Whether a file's metadata disagrees with its network's configuration."""
    same = ("stems", "channels", "sample_rate", "n_fft", "hop")
    return any(getattr(config, field) != getattr(metadata, field) for field in same)


def integer(fields: dict[str, Any], key: str, minimum: int, maximum: int) -> int:
    """A field that is an integer between limits. Raises ValueError for any other."""
    value = fields[key]
    if type(value) is not int or not minimum <= value <= maximum:
        raise ValueError(key)
    return value


def decimal(fields: Mapping[str, str], key: str, minimum: int, maximum: int) -> int:
    """A field that is text, as `integer`. Raises ValueError, or KeyError if it is missing."""
    text = fields[key]
    return integer({key: int(text) if text.isdecimal() else text}, key, minimum, maximum)
