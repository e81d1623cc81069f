"""What the backends of ONNX files share: everything around the network, in NumPy (see `families`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import DeviceError, ModelError
from tfswa_sep.inference.families.band_masks import BandMasks
from tfswa_sep.inference.families.choose import choose_family
from tfswa_sep.inference.families.family import Graph, Shape
from tfswa_sep.inference.metadata import KEY, ModelMetadata, parse_metadata


class GraphBackend(ABC):
    """A model in an ONNX file; see backend.Backend.

    Args:
        path: The file.
        properties: Its metadata.
        graph: Its inputs and outputs.
        settings: What the metadata lacks, see `families.choose`.

    Raises:
        ModelError: The metadata are invalid or contradict the graph.
    """

    batch_size = 1

    def __init__(
        self, path: Path, properties: Mapping[str, str], graph: Graph, settings: Mapping[str, str]
    ) -> None:
        self._path, self._properties = path, properties
        self.family = choose_family(properties, settings, graph, file=str(path))
        self.stems = self.family.stems
        self.sample_rate = self.family.sample_rate
        self.channels = self.family.channels
        self.plan = self.family.plan
        self.segment_samples = self.plan.segment
        self.margin_samples = self.plan.margin
        self._one_per_call = any(shape[:1] == (1,) for shape in graph.inputs.values())
        self._outputs = list(self.family.outputs)
        self._check_shapes("inputs", self.family.inputs, graph.inputs)
        self._check_shapes("outputs", self.family.outputs, graph.outputs)
        # Files of older exports have a fixed number of frames.
        self._any_length = all(shape[-1] is None for shape in graph.inputs.values())

    @property
    def metadata(self) -> ModelMetadata:
        """The metadata of one of our own models. Raises ModelError for any other."""
        return parse_metadata(self._properties.get(KEY), file=str(self._path))

    def __call__(
        self, segments: NDArray[np.float32], *, stem_matrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See Backend."""
        if self._one_per_call and len(segments) > 1:
            return np.concatenate([self(segment[None], stem_matrix=stem_matrix) for segment in segments])
        return self._separate(segments, stem_matrix)

    def fit_segment(self, samples: int) -> int:
        """See AnyLength."""
        if self._any_length and isinstance(self.family, BandMasks):
            return self.family.fit_segment(samples)
        return self.plan.segment

    def newest(
        self, segments: NDArray[np.float32], samples: int, *, stem_matrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See AnyLength."""
        return self._separate(segments, stem_matrix, newest=samples)[..., -samples:]

    def _separate(
        self,
        segments: NDArray[np.float32],
        stem_matrix: NDArray[np.float32] | None,
        *,
        newest: int | None = None,
    ) -> NDArray[np.float32]:
        try:
            if newest is not None and isinstance(self.family, BandMasks):
                return self.family.separate(segments, self._run_network, stem_matrix, newest=newest)
            return self.family.separate(segments, self._run_network, stem_matrix)
        except Exception as error:  # the runtimes' errors have no common base class
            if "alloc" in str(error).lower() or isinstance(error, MemoryError):
                raise DeviceError("out of memory while separating: close other programs") from None
            raise ModelError(f"{self._path} cannot be run ({first_line(error)}): download it again") from None

    @abstractmethod
    def _run_network(self, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The outputs, in the order of `_outputs`; may be called from several threads."""

    def _check_shapes(self, kind: str, expected: Mapping[str, Shape], actual: Mapping[str, Shape]) -> None:
        """Raise ModelError if the graph's inputs or outputs contradict its metadata. None fits any size."""
        fits = actual.keys() == expected.keys() and all(
            len(actual[name]) == len(shape)
            and all(
                None in (size, expected_size) or size == expected_size
                for size, expected_size in zip(actual[name], shape, strict=True)
            )
            for name, shape in expected.items()
        )
        if not fits:
            raise ModelError(
                f"{self._path} does not match its own metadata: expected {kind} {dict(expected)}, got {dict(actual)}"
            )


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
