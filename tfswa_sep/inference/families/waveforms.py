"""Networks that map the mixture's samples to the stems', such as htdemucs with the STFT inside the graph.

Axis letters: b batch, s model stem, k requested stem, c channel, n samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfswa_sep.constants import MODEL_CHANNELS, SAMPLE_RATE
from tfswa_sep.inference.families.family import Floats, Graph, Run, Shape
from tfswa_sep.inference.metadata import MAX_SEGMENT, decimal, stem_names
from tfswa_sep.inference.overlap_add import plan_triangles

# Files of demucs-onnx have no metadata: by the name of their output and its number of stems, they are these.
_DEMUCS_OUTPUT = "stems"
_DEMUCS_STEMS = {4: "drums,bass,other,vocals", 6: "drums,bass,other,vocals,guitar,piano"}


class WaveformToWaveforms:
    """One input (b, c, n) to one output (b, s, c, n), for a fixed n.

    Args:
        graph: The network's inputs and outputs.
        settings: `stems`, separated by commas, and `sample_rate`, by default 44,100.

    Raises:
        ValueError: A setting does not fit.
        KeyError: A setting is missing.
    """

    KEYS = frozenset({"stems", "sample_rate"})
    EXAMPLE = "stems=drums,bass,other,vocals"

    def __init__(self, graph: Graph, settings: Mapping[str, str]) -> None:
        ((self._input, (_, channels, length)),) = graph.inputs.items()
        ((output, (_, count, *_)),) = graph.outputs.items()
        defaults = {"sample_rate": str(SAMPLE_RATE)}
        if output == _DEMUCS_OUTPUT and count in _DEMUCS_STEMS:
            defaults["stems"] = _DEMUCS_STEMS[count]
        settings = {**defaults, **settings}
        self.stems = stem_names(settings["stems"].split(","))
        self.sample_rate = decimal(settings, "sample_rate", 8_000, 192_000)
        self.channels = MODEL_CHANNELS
        if len(self.stems) != count:
            raise ValueError("stems")
        if channels != MODEL_CHANNELS:
            raise ValueError("channels")
        if length is None or not 64 <= length <= MAX_SEGMENT:
            raise ValueError("segment")
        self.plan = plan_triangles(length)
        self.inputs: dict[str, Shape] = {self._input: (None, channels, length)}
        self.outputs: dict[str, Shape] = {output: (None, count, channels, length)}

    def separate(self, segments: Floats, run: Run, stem_matrix: Floats | None) -> Floats:
        """See Family."""
        (waves,) = run({self._input: segments})
        if stem_matrix is None:
            return waves
        summed: Floats = np.einsum("ks,bscn->bkcn", stem_matrix, waves)
        return summed
