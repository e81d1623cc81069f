"""MDX-Net, whose files in UVR and audio-separator map the mixture's spectrum to that of one stem.

Axis letters: b batch, k requested stem, c channel, n samples, f bins, t frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from tfswa_sep.constants import MODEL_CHANNELS, SAMPLE_RATE
from tfswa_sep.inference.families.family import Floats, Graph, Run, Shape
from tfswa_sep.inference.metadata import check_transform, decimal, stem_names
from tfswa_sep.inference.overlap_add import DEMUCS_OVERLAP, SegmentPlan
from tfswa_sep.inference.stft_numpy import istft, stft

_HOP = "1024"  # of all published networks
_SILENT_BINS = 3  # the lowest ones are left out of the input


class MdxNet:
    """One input (b, 4, f, t), the real and imaginary part of each channel, to one output of the same shape.

    The other stem is the mixture minus the network's times `gain`, which makes up for what the network loses of a
    stem's level. Segments, overlap and fades are those of audio-separator, except at a song's end, where that shortens
    its windows.

    Args:
        graph: The network's inputs and outputs.
        settings: `n_fft`; `stems`, the network's and the other one; `gain`, by default 1; `hop`, by default 1,024;
            `sample_rate`, by default 44,100.

    Raises:
        ValueError: A setting does not fit.
        KeyError: A setting is missing.
    """

    KEYS = frozenset({"n_fft", "hop", "stems", "gain", "sample_rate"})
    EXAMPLE = "n_fft=6144 stems=vocals,instrumental gain=1.03"

    def __init__(self, graph: Graph, settings: Mapping[str, str]) -> None:
        ((self._input, (_, parts, bins, frames)),) = graph.inputs.items()
        ((output, _),) = graph.outputs.items()
        settings = {"hop": _HOP, "gain": "1", "sample_rate": str(SAMPLE_RATE), **settings}
        self.stems = stem_names(settings["stems"].split(","))
        if len(self.stems) != 2:
            raise ValueError("stems")
        self.sample_rate = decimal(settings, "sample_rate", 8_000, 192_000)
        self.channels = MODEL_CHANNELS
        self._gain = np.float32(_gain(settings["gain"]))
        self._n_fft = decimal(settings, "n_fft", 64, 1 << 15)
        self._hop = decimal(settings, "hop", 16, 1 << 15)
        if bins is None or frames is None or not _SILENT_BINS < bins <= self._n_fft // 2 + 1:
            raise ValueError("n_fft")
        check_transform(self._n_fft, self._hop, frames=frames, any_hop=True)
        self._bins = bins
        self.plan = _plan(segment=self._hop * (frames - 1), lead=self._n_fft // 2)
        self.inputs: dict[str, Shape] = {self._input: (None, parts, bins, frames)}
        self.outputs: dict[str, Shape] = {output: (None, parts, bins, frames)}

    def separate(self, segments: Floats, run: Run, stem_matrix: Floats | None) -> Floats:
        """See Family."""
        rows = np.eye(2, dtype=np.float32) if stem_matrix is None else stem_matrix
        of_mixture = rows[:, 1]
        of_wave = rows[:, 0] - self._gain * of_mixture
        wave = self._invert(*run({self._input: self._transform(segments)}), length=segments.shape[-1])
        return of_wave[:, None, None] * wave[:, None] + of_mixture[:, None, None] * segments[:, None]

    def _transform(self, segments: Floats) -> Floats:
        """Segments (b, c, n) as the network's input."""
        side = self._n_fft // 2
        padded = np.pad(segments, ((0, 0), (0, 0), (side, side)), mode="reflect")
        spectrum = stft(padded, n_fft=self._n_fft, hop=self._hop, centred=False)[:, :, : self._bins]
        parts = np.stack([spectrum.real, spectrum.imag], axis=2)  # (b, c, 2, f, t)
        parts[..., :_SILENT_BINS, :] = 0
        return parts.reshape(len(parts), -1, *parts.shape[3:])

    def _invert(self, output: Floats, *, length: int) -> Floats:
        """The network's output as samples (b, c, n)."""
        parts = output.reshape(len(output), self.channels, 2, *output.shape[2:])
        spectrum = np.zeros((*parts.shape[:2], self._n_fft // 2 + 1, parts.shape[-1]), np.complex64)
        spectrum.real[:, :, : self._bins] = parts[:, :, 0]
        spectrum.imag[:, :, : self._bins] = parts[:, :, 1]
        return istft(spectrum, n_fft=self._n_fft, hop=self._hop, length=length)


def _gain(text: str) -> float:
    """A gain between 0.5 and 2. Raises ValueError for any other."""
    with suppress(ValueError):
        if 0.5 <= (gain := float(text)) <= 2:
            return gain
    raise ValueError("gain")


def _plan(*, segment: int, lead: int) -> SegmentPlan:
    """Segments that overlap by a quarter, each weighted with a Hann window."""
    step = int((1 - DEMUCS_OVERLAP) * segment)
    window = np.hanning(segment)
    rising, falling = window[: segment - step], window[step:]
    weights = (rising / (rising + falling)).astype(np.float32)
    return SegmentPlan(segment=segment, margin=0, fade=segment - step, lead=lead, weights=weights)
