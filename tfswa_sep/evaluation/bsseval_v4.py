"""BSSEval version 4 with museval's numbers, at a fraction of its time.

museval projects each estimate on the references, and on its own reference, delayed by 0 to 511 samples: by least
squares over the whole song. Then it compares the projections with the estimate, second by second (Vincent et
al. 2006; Stöter, Liutkus, Ito 2018). Here the references' normal equations are factored once for all methods,
correlations come from short blocks, and energies from spectra, so that no signal is filtered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.evaluation.optional_packages import need

Array = NDArray[np.float64]
Spectra = NDArray[np.complex128]

TAPS = 512  # of the distortion filters
BLOCK = 2**14  # samples of the transforms that correlate
BLOCKS = 16  # at a time
FRAMES = 8  # at a time


class References:
    """The references of a song that are scored against each other, ready for any number of methods."""

    def __init__(self, references: Array, rate: int) -> None:
        """`references`: (stems, n, c), none of them silent; `rate`: sample rate in Hz, the length of a frame."""
        self.references, self.frame = references, min(rate, references.shape[1])
        stems, _, channels = references.shape
        rows = _rows(references)
        lags = correlations(rows, rows)
        self._whole = _Solver(lags, _distinct(rows))
        self._alone = [
            _Solver(lags[stem, stem], _distinct(rows[stem]))
            for stem in (slice(first, first + channels) for first in range(0, stems * channels, channels))
        ]

    def ratios(self, estimates: Array, wanted: Sequence[int]) -> Array:
        """museval's SDR, ISR, SIR and SAR in frames of 1 s.

        Args:
            estimates: (stems, n, c), as the references.
            wanted: Stems whose ratios are computed.

        Returns:
            (4, wanted, frames) in dB; NaN in frames in which a reference or an estimate is silent.
        """
        stems, samples, channels = estimates.shape
        size = int(need("scipy.fft", "BSSEval").next_fast_len(self.frame + TAPS - 1, real=True))
        wanted = list(wanted)
        lags = correlations(_rows(self.references), _rows(estimates[wanted]))
        on_all = np.moveaxis(np.fft.rfft(self._whole.filters(lags), size), -1, 0)  # (f, to, from)
        by_stem = lags.reshape(stems, channels, len(wanted), channels, TAPS)
        on_own = np.stack(
            [
                np.moveaxis(np.fft.rfft(self._alone[stem].filters(by_stem[stem, :, place]), size), -1, 0)
                for place, stem in enumerate(wanted)
            ],
            axis=1,
        )  # (f, wanted, to, from)
        found = []
        for first in range(0, samples // self.frame, FRAMES):
            count = min(FRAMES, samples // self.frame - first)
            piece = slice(first * self.frame, (first + count) * self.frame)
            shape = (stems, count, self.frame, channels)
            true, guess = self.references[:, piece].reshape(shape), estimates[:, piece].reshape(shape)
            found.append(_ratios(true, guess, wanted, on_all, on_own, size))
        return np.concatenate(found, axis=-1)


class _Solver:
    """Normal equations of signals that are delayed by 0 to TAPS - 1 samples."""

    def __init__(self, lags: Array, distinct: list[int]) -> None:
        """`lags`: correlations of the signals with themselves, (p, p, TAPS); `distinct`: signals to use."""
        self._linalg = need("scipy.linalg", "BSSEval")
        self._distinct = distinct
        self._kept: Any = slice(None)  # the unknowns that are solved for
        lags = lags[np.ix_(distinct, distinct)]
        try:
            self._factor, _ = self._linalg.cho_factor(
                self._gram(lags), lower=True, overwrite_a=True, check_finite=False
            )
        except np.linalg.LinAlgError:  # signals that depend on each other in another way: use a basis
            factor, order, rank, _ = self._linalg.lapack.dpstrf(self._gram(lags), lower=1, overwrite_a=1)
            self._factor, self._kept = factor[:rank, :rank].copy(order="F"), order[:rank] - 1

    def _gram(self, lags: Array) -> Array:
        """Their inner products, (p x TAPS, p x TAPS)."""
        size = len(lags) * TAPS
        gram = np.empty((size, size), order="F")  # as LAPACK has it: nothing is copied
        blocks = gram.T.reshape(len(lags), TAPS, len(lags), TAPS)
        for i in range(len(lags)):
            for j in range(i + 1):
                blocks[j, :, i] = self._linalg.toeplitz(lags[j, i], lags[i, j])
        gram[np.diag_indices(size)] += np.finfo(float).eps  # as museval does
        return gram

    def filters(self, lags: Array) -> Array:
        """The filters that take the signals closest to others: (q, p, TAPS) for correlations (p, q, TAPS)."""
        right = np.moveaxis(lags[self._distinct], 1, 2).reshape(-1, lags.shape[1])
        solved = np.zeros_like(right)
        solved[self._kept] = self._linalg.cho_solve(
            (self._factor, True), right[self._kept], check_finite=False
        )
        filters = np.zeros((lags.shape[1], len(lags), TAPS))
        filters[:, self._distinct] = solved.T.reshape(lags.shape[1], -1, TAPS)
        return filters


def _distinct(rows: Array) -> list[int]:
    """Signals that are not silent, each once: both channels of a mono stem are one."""
    kept: list[int] = []
    for number, row in enumerate(rows):
        if row.any() and not any(np.array_equal(row, rows[other]) for other in kept):
            kept.append(number)
    return kept


def correlations(left: Array, right: Array) -> Array:
    """Sums over m of left[i, m] * right[j, m + lag], (p, q, TAPS), for signals (p, n) and (q, n)."""
    step = BLOCK - TAPS + 1
    samples = left.shape[1]
    total = np.zeros((BLOCK // 2 + 1, len(left), len(right)), complex)
    for start in range(0, samples, BLOCKS * step):
        starts = range(start, min(start + BLOCKS * step, samples), step)
        one = _spectra([left[:, begin : begin + step] for begin in starts])
        two = _spectra([right[:, begin : begin + BLOCK] for begin in starts])
        total += one.conj() @ two.swapaxes(1, 2)
    return np.ascontiguousarray(np.moveaxis(np.fft.irfft(total, BLOCK, axis=0)[:TAPS], 0, -1))


def _spectra(blocks: list[Array]) -> Spectra:
    """(f, signals, blocks) for blocks (signals, up to BLOCK samples)."""
    padded = np.zeros((len(blocks[0]), len(blocks), BLOCK))
    for number, block in enumerate(blocks):
        padded[:, number, : block.shape[1]] = block
    return np.ascontiguousarray(np.moveaxis(np.fft.rfft(padded), -1, 0))


def _ratios(
    true: Array, guess: Array, wanted: list[int], on_all: Spectra, on_own: Spectra, size: int
) -> Array:
    """The ratios (4, wanted, frames) of frames (stems, frames, n, c), with the spectra of the filters."""
    frames, channels = true.shape[1], true.shape[3]

    def spectra(signals: Array) -> Spectra:
        rows = np.moveaxis(signals, -1, 1).reshape(len(signals) * channels, frames, -1)
        return np.ascontiguousarray(np.moveaxis(np.fft.rfft(rows, size), -1, 0))  # (f, stems x c, frames)

    weights = np.full(size // 2 + 1, 2 / size)  # each frequency counts for its mirror image, too
    weights[0] = weights[size // 2 if size % 2 == 0 else 0] = 1 / size
    shape = (len(weights), len(wanted), channels, frames)

    def energy(signals: Spectra) -> Array:
        power = np.square(signals.real)
        power += np.square(signals.imag)
        return np.asarray((weights @ power.reshape(len(weights), -1)).reshape(shape[1:]).sum(axis=1))

    silent = [~np.any(side.sum(axis=3), axis=2).all(axis=0) for side in (true, guess)]
    references = spectra(true)
    everything = (on_all @ references).reshape(shape)
    references = references.reshape(len(weights), -1, channels, frames)[:, wanted]
    own = on_own @ references
    true, guess = true[wanted], guess[wanted]
    energies = (
        (np.sum(true**2, axis=(2, 3)), np.sum((guess - true) ** 2, axis=(2, 3))),
        (energy(references), energy(own - references)),
        (energy(own), energy(everything - own)),
        (energy(everything), energy(spectra(guess).reshape(shape) - everything)),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.array([10 * np.log10(signal / error) for signal, error in energies])
    ratios[..., silent[0] | silent[1]] = np.nan
    return ratios


def _rows(signals: Array) -> Array:
    """(stems x c, n) from (stems, n, c)."""
    return np.moveaxis(signals, -1, 1).reshape(-1, signals.shape[1])
