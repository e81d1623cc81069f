"""What the families of models have in common.

Axis letters: b batch, s model stem, k requested stem, c channel, n samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.inference.overlap_add import SegmentPlan

Floats = NDArray[np.float32]
Shape = tuple[int | None, ...]  # None fits any size
Run = Callable[[dict[str, Floats]], list[Floats]]  # inputs by name -> outputs, in the family's order


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The inputs and outputs that a network's file declares."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


class StemModel(Protocol):
    """What is known of any model before it runs."""

    @property
    def stems(self) -> tuple[str, ...]:
        """The model's s stems, in output order."""
        ...

    @property
    def sample_rate(self) -> int:
        """Hz."""
        ...

    @property
    def channels(self) -> int:
        """Audio channels, c."""
        ...

    @property
    def plan(self) -> SegmentPlan:
        """How a song is cut."""
        ...


class Family(StemModel, Protocol):
    """How segments of samples become a network's inputs, and its outputs become stems."""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """The network's inputs."""
        ...

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """The network's outputs, in the order in which `separate` expects them."""
        ...

    def separate(self, segments: Floats, run: Run, stem_matrix: Floats | None) -> Floats:
        """Separate segments with the network.

        Args:
            segments: (b, c, n).
            run: Runs the network.
            stem_matrix: (k, s), the requested stems as sums of the model's; None for the model's own.

        Returns:
            (b, s, c, n), or (b, k, c, n) with a matrix.
        """
        ...
