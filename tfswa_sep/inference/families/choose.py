"""Which family a model file belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from tfswa_sep.inference.families import magnitude_masks
from tfswa_sep.inference.families.band_masks import BandMasks
from tfswa_sep.inference.families.family import Family
from tfswa_sep.inference.families.magnitude_masks import MagnitudeMasks
from tfswa_sep.inference.families.spectra import Hybrid, SpectraToSpectra
from tfswa_sep.inference.metadata import KEY

_FAMILIES: dict[str, Callable[..., Family]] = {
    magnitude_masks.NAME: MagnitudeMasks,
    "roformer": SpectraToSpectra,  # this and the following are unblend's names
    "scnet": SpectraToSpectra,
    "demucs": Hybrid,
}


def choose_family(properties: Mapping[str, str], *, file: str) -> Family:
    """Read how a model is used from its file's metadata.

    Args:
        properties: The metadata.
        file: The file's name, for errors.

    Raises:
        ModelError: The metadata is missing or invalid, or names no family known here.
    """
    return _FAMILIES.get(_named_family(properties), BandMasks)(properties, file=file)


def _named_family(properties: Mapping[str, str]) -> str:
    """The family that our own metadata or unblend's name, "" if none."""
    if KEY not in properties:
        return properties.get("model_family", "")
    try:
        return str(json.loads(properties[KEY]).get("family", ""))
    except (ValueError, AttributeError, RecursionError):  # the family reports it
        return ""
