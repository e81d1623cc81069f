"""Metrics over whole songs. Samples are (c, n) float32; the channels are pooled.

    SDR     10 log10(energy of the reference / energy of the error): the "global SDR" or uSDR of the Music
            Demixing challenges (Mitsufuji et al. 2021; Fabbro et al. 2023), which is not the windowed BSSEval
            SDR of museval
    SI-SDR  the same against the reference scaled to fit the estimate (Le Roux et al. 2019)
    kept    gain of the true stem in the estimate, ideally 1
    leaked  gain of all other stems in it, ideally 0: estimate ~ kept * stem + leaked * others, by least squares

None of these is defined for a silent reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfswa_sep.audio.resample import Samples

SILENCE_RMS = 1e-5  # of full scale, -100 dB: below it a stem counts as silent
ENERGY_FLOOR = 1e-7  # added to both energies of an SDR, as the challenges do: a perfect estimate stays finite


def sdr(reference: Samples, estimate: Samples) -> float | None:
    """Global SDR in dB of `estimate` against `reference`, both (c, n); None where the reference is silent."""
    sums = RunningScore()
    sums.add(reference, np.zeros_like(reference), estimate)
    return None if sums.is_silent else sums.sdr()


def si_sdr(reference: Samples, estimate: Samples) -> float | None:
    """Scale-invariant SDR in dB, both (c, n); None where the reference or the estimate is silent."""
    sums = RunningScore()
    sums.add(reference, np.zeros_like(reference), estimate)
    return None if sums.is_silent else sums.si_sdr()


class RunningScore:
    """Metrics accumulated block by block from the reference, the rest of its mixture and the estimate."""

    def __init__(self) -> None:
        self.samples = 0  # of all channels
        self.gram = np.zeros((3, 3))  # Gram matrix of (reference, rest, estimate)
        self.error = (
            0.0  # energy of reference - estimate; computed from the Gram matrix it would lose precision
        )

    def add(self, reference: Samples, rest: Samples, estimate: Samples) -> None:
        """Add one block; each signal is (c, n)."""
        rows = np.stack([reference.ravel(), rest.ravel(), estimate.ravel()]).astype(np.float64)
        self.samples += reference.size
        self.gram += rows @ rows.T
        self.error += float(np.sum((rows[0] - rows[2]) ** 2))

    def _is_row_silent(self, row: int) -> bool:
        return bool(self.gram[row, row] <= self.samples * SILENCE_RMS**2)

    @property
    def is_silent(self) -> bool:
        """Whether the reference is silent."""
        return self._is_row_silent(0)

    @property
    def is_alone(self) -> bool:
        """Whether the reference is the whole mixture."""
        return self._is_row_silent(1)

    def sdr(self) -> float:
        """Global SDR in dB."""
        return float(decibels(self.gram[0, 0], self.error))

    def si_sdr(self) -> float | None:
        """Scale-invariant SDR in dB; None where the estimate is silent."""
        if self._is_row_silent(2):
            return None
        target = self.gram[0, 2] ** 2 / self.gram[0, 0]
        return float(decibels(target, max(self.gram[2, 2] - target, 0.0)))

    def shares(self) -> tuple[float, float]:
        """(kept, leaked): least-squares gains of the reference and of the rest in the estimate."""
        gains = np.linalg.lstsq(self.gram[:2, :2], self.gram[:2, 2], rcond=None)[0]
        return float(gains[0]), float(gains[1])

    def level(self) -> float:
        """Level of the estimate relative to the mixture, in dB."""
        return float(decibels(self.gram[2, 2], self.gram[:2, :2].sum()))


def decibels(signal: Any, noise: Any) -> Any:
    """Ratio of two energies in dB, for numbers or arrays."""
    return 10 * np.log10((signal + ENERGY_FLOOR) / (noise + ENERGY_FLOOR))
