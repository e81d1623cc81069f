"""Which family a model file belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.families import magnitude_masks
from tfswa_sep.inference.families.band_masks import BandMasks
from tfswa_sep.inference.families.family import Family, Graph
from tfswa_sep.inference.families.magnitude_masks import MagnitudeMasks
from tfswa_sep.inference.families.mdx_net import MdxNet
from tfswa_sep.inference.families.spectra import Hybrid, SpectraToSpectra
from tfswa_sep.inference.families.waveforms import WaveformToWaveforms
from tfswa_sep.inference.metadata import KEY

_FAMILIES: dict[str, Callable[..., Family]] = {
    magnitude_masks.NAME: MagnitudeMasks,
    "roformer": SpectraToSpectra,  # this and the following are unblend's names
    "scnet": SpectraToSpectra,
    "demucs": Hybrid,
}


def choose_family(
    properties: Mapping[str, str], settings: Mapping[str, str], graph: Graph, *, file: str
) -> Family:
    """Read how a model is used from its file's metadata or, if that says nothing, from its shape and the settings.

    Args:
        properties: The metadata.
        settings: What the user or models.toml adds to it or replaces.
        graph: The network's inputs and outputs.
        file: The file's name, for errors.

    Raises:
        ModelError: The metadata or settings are missing or invalid, or belong to no family known here.
    """
    properties = {**properties, **settings}
    if not properties.keys() & {KEY, "model_family"} and (family := _family_of_shape(graph)):
        return _with_settings(family, graph, settings, file=file)
    return _FAMILIES.get(_named_family(properties), BandMasks)(properties, file=file)


def _named_family(properties: Mapping[str, str]) -> str:
    """The family that our own metadata or unblend's name, "" if none."""
    if KEY not in properties:
        return properties.get("model_family", "")
    try:
        return str(json.loads(properties[KEY]).get("family", ""))
    except (ValueError, AttributeError, RecursionError):  # the family reports it
        return ""


def _family_of_shape(graph: Graph) -> type[MdxNet | WaveformToWaveforms] | None:
    """The family of a network with one input and one output, None if they fit none."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return None
    (before,), (after,) = graph.inputs.values(), graph.outputs.values()
    if len(before) == len(after) == 4 and before[1] == after[1] == 4:
        return MdxNet
    if len(before) == 3 and len(after) == 4 and before[1:] == after[2:]:
        return WaveformToWaveforms
    return None


def _with_settings(
    family: type[MdxNet | WaveformToWaveforms], graph: Graph, settings: Mapping[str, str], *, file: str
) -> Family:
    if unknown := sorted(settings.keys() - family.KEYS):
        raise ModelError(
            f"{file} has no setting {unknown[0]!r}: choose from {', '.join(sorted(family.KEYS))}"
        )
    try:
        return family(graph, settings)
    except KeyError as error:
        raise ModelError(
            f"{file} does not specify {error.args[0]}: set it with --model-settings, "
            f"such as '{family.EXAMPLE}'"
        ) from None
    except ValueError as error:
        raise ModelError(f"{file} does not fit its settings (at {error})") from None
