"""What a model file says about itself: one JSON object under the key "tfswa_sep", in ONNX and safetensors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tfswa_sep.errors import ModelError
from tfswa_sep.model.config import ModelConfig

KEY = "tfswa_sep"
FORMAT = 2  # 1 had the spectrogram's masks in the ONNX graph
# Stems, and sums of them such as drums+bass, become file names: no dots, no slashes.
_STEM = re.compile(r"[a-z][a-z0-9_-]*(\+[a-z][a-z0-9_-]*)*")
_LONGEST_STEM = 48  # characters: beside the longest name of a song, what file systems take
_LONGEST_SEGMENT = 1 << 24  # samples, 6 minutes at 44.1 kHz: a limit for files that are not ours
_LARGEST_SPECTROGRAM = 1 << 26  # frames times n_fft, half a gigabyte a channel: likewise


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """How to feed a model, and what comes out of it."""

    name: str
    architecture: str  # preset
    license: str
    config: dict[str, Any]  # the model's own configuration; the torch backend builds the network from it
    stems: tuple[str, ...]
    sample_rate: int  # Hz
    channels: int
    n_fft: int  # samples
    hop: int  # samples
    segment_samples: int  # samples that the network sees at once
    margin_samples: int  # context samples at each side of a segment that are thrown away


def parse_metadata(text: str | None, *, file: str) -> ModelMetadata:
    """Read and check the JSON `text` found in `file` (None: there was none). Raises ModelError, one line."""
    if not text:
        raise ModelError(f"{file} is not a tfswa-sep model: it has no '{KEY}' metadata")
    try:
        fields = json.loads(text)
        if (found := fields["format"]) != FORMAT:
            old = isinstance(found, int) and found < FORMAT
            advice = "download or export the model again" if old else "update tfswa-sep"
            raise ModelError(
                f"{file} has metadata format {found!r}, but only {FORMAT} is supported: {advice}"
            )
        stems = tuple(fields["stems"])
        metadata = ModelMetadata(
            name=str(fields.get("name", "")),
            architecture=str(fields.get("architecture", "")),
            license=str(fields.get("license", "")),
            config=dict(fields.get("config", {})),
            stems=stems,
            sample_rate=_whole(fields, "sample_rate", 8_000, 192_000),
            channels=_whole(fields, "channels", 2, 2),
            n_fft=_whole(fields, "n_fft", 64, 1 << 15),
            hop=_whole(fields, "hop", 16, 1 << 15),
            segment_samples=_whole(fields, "segment_samples", 64, _LONGEST_SEGMENT),
            margin_samples=_whole(fields, "margin_samples", 0, _LONGEST_SEGMENT),
        )
        if not stems or len(set(stems)) < len(stems) or not all(map(is_stem_name, stems)):
            raise ValueError("stems")
        if metadata.n_fft % metadata.hop or metadata.n_fft % 2:
            raise ValueError("hop")
        if (metadata.segment_samples // metadata.hop + 1) * metadata.n_fft > _LARGEST_SPECTROGRAM:
            raise ValueError("segment_samples")
        if 2 * metadata.margin_samples >= metadata.segment_samples:
            raise ValueError("margin_samples")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = "not JSON" if isinstance(error, json.JSONDecodeError) else f"at {error}"
        raise ModelError(
            f"{file} is damaged or not a tfswa-sep model: its metadata is invalid ({reason})"
        ) from None
    return metadata


def is_stem_name(name: str) -> bool:
    """Whether a model's stem may be called so: small letters, digits, - and _, or a sum of such names."""
    return len(name) <= _LONGEST_STEM and _STEM.fullmatch(name) is not None


def contradicts(metadata: ModelMetadata, config: ModelConfig) -> bool:
    """Whether a file says one thing of itself and another of its network."""
    same = ("stems", "channels", "sample_rate", "n_fft", "hop")
    return any(getattr(config, field) != getattr(metadata, field) for field in same)


def _whole(fields: dict[str, Any], key: str, least: int, most: int) -> int:
    value = fields[key]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(key)
    return value
