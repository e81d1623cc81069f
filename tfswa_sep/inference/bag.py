"""Several networks that make up one model, such as htdemucs_ft, whose specialists each know one stem best.

Axis letters: m network, s model stem, k requested stem.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.backend import Backend


class Bag:
    """Networks with the same stems and segments, whose weighted mean is the model; see backend.Backend.

    A network is loaded when a stem first needs it, but the first one at once, for the others must be like it.

    Args:
        load: Load the networks.
        weights: Of each network in each stem, (m, s); they need not sum to one.

    Raises:
        ModelError, DeviceError: The first network cannot be loaded.
    """

    def __init__(self, load: Sequence[Callable[[], Backend]], weights: NDArray[np.float32]) -> None:
        self._load = load
        self._shares = weights / weights.sum(axis=0)
        self._lock = threading.Lock()
        first = load[0]()
        self._networks = {0: first}
        self.name = first.name
        self.device = first.device
        self.precision = first.precision
        self.workers = first.workers
        self.batch_size = first.batch_size
        self.stems = first.stems
        self.sample_rate = first.sample_rate
        self.channels = first.channels
        self.plan = first.plan
        self._check(first)

    @property
    def notes(self) -> Sequence[str]:
        """See Backend."""
        return tuple(dict.fromkeys(note for network in self._networks.values() for note in network.notes))

    def __call__(
        self, segments: NDArray[np.float32], *, stem_matrix: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """See Backend. Networks without a share in the requested stems are not run."""
        rows = np.eye(len(self.stems), dtype=np.float32) if stem_matrix is None else stem_matrix
        stems = np.zeros((len(segments), len(rows), *segments.shape[1:]), np.float32)
        for index, shares in enumerate(self._shares):
            if (own_rows := rows * shares).any():
                stems += self._network(index)(segments, stem_matrix=own_rows)
        return stems

    def _network(self, index: int) -> Backend:
        with self._lock:
            if index not in self._networks:
                network = self._load[index]()
                self._check(network)
                self._networks[index] = network
            return self._networks[index]

    def _check(self, network: Backend) -> None:
        """Raise ModelError unless a network is like the first."""
        found = (network.stems, network.sample_rate, network.channels, network.plan)
        expected = (self.stems, self.sample_rate, self.channels, self.plan)
        if found != expected or len(network.stems) != self._shares.shape[1]:
            raise ModelError("the files of this model do not fit together: their stems or segments differ")
