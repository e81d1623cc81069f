"""Metrics of whole songs that agree better with listeners than SDR does, or say what kind of error there is.

    logWMSE    how far below the mixture the error is, weighted by the ear's sensitivity; defined for a silent
               reference too (Nomono, log-wmse-audio-quality; here as torch-log-wmse has it)
    SI-SAR     energy of the scaled reference over that of the artefacts, which no true stem explains (Le Roux
               et al. 2019); agrees better with listeners than SDR for drums and bass (Jaffe and Burgoyne 2025)
    bleedless  100 if no mel band is louder than in the reference; 100 / (1 + mean excess in dB)
    fullness   the same for bands that are quieter (both as in Music-Source-Separation-Training)

Signals are (c, n). SI-SAR pools the channels: each stem has one gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.evaluation.metrics import decibels

Array = NDArray[np.float64]

WEIGHTING_TAPS = 4000  # of the filter of logWMSE
WEIGHTING_POINTS = 4096  # at which its response is sampled
BLOCK = 2**16  # samples of the transforms that filter
LOG_FLOOR = 1e-8  # of logWMSE's ratio: 73.7 for a perfect estimate
LOUDEST_SILENCE = 1e-16  # lower limit of a mixture's mean square

FFT, HOP, MELS = 4096, 1024, 512  # of bleedless and fullness
MEL_FLOOR, MEL_RANGE = 1e-10, 80.0  # lower limit of a magnitude; dB below the loudest band
SPECTRA = 512  # transformed at a time


def log_wmse(mixture: Array, reference: Array, estimate: Array, rate: int) -> float:
    """logWMSE, averaged over the channels: 73.7 if perfect, 0 if the error is as loud as the mixture.

    Args:
        mixture: What was separated, (c, n).
        reference: The true stem, (c, n), which may be silent.
        estimate: Its estimate, (c, n).
        rate: In Hz. Only values at one rate are comparable; published ones are at 44 100 Hz.
    """
    weighting = _weighting(rate)
    samples = mixture.shape[1]
    allowed = np.maximum(_weighted_energy(mixture, weighting) / samples, LOUDEST_SILENCE)
    error = _weighted_energy(np.subtract(estimate, reference), weighting) / samples
    return float(np.mean(-4 * np.log(error / allowed + LOG_FLOOR)))


def si_sar(stems: Sequence[Array], reference: Array, estimate: Array) -> float | None:
    """SI-SAR in dB, finite even for a perfect estimate; None if the reference or the estimate is silent.

    Args:
        stems: All true stems of the song, (c, n) each, which, at any gains, do not count as artefacts.
        reference: The true stem, (c, n).
        estimate: Its estimate, (c, n).
    """
    true, guess = np.ravel(reference).astype(float), np.ravel(estimate).astype(float)
    if not true.any() or not guess.any():
        return None
    basis = np.stack([true, *(np.ravel(stem).astype(float) for stem in stems)])
    gains = np.linalg.lstsq(basis @ basis.T, basis @ guess, rcond=None)[0]
    artefacts = float(np.sum((guess - gains @ basis) ** 2))
    return float(decibels((guess @ true) ** 2 / (true @ true), artefacts))


def bleedless_fullness(reference: Array, estimate: Array, rate: int) -> tuple[float, float]:
    """(bleedless, fullness), 0 to 100, for (c, n) at `rate` Hz."""
    difference = mel_decibels(estimate, rate) - mel_decibels(reference, rate)
    excess, lack = difference[difference > 0], -difference[difference < 0]
    means = (float(values.mean()) if values.size else 0.0 for values in (excess, lack))
    bleedless, fullness = (100 / (1 + mean) for mean in means)
    return bleedless, fullness


def _weighting(rate: int) -> Array:
    """logWMSE's linear-phase filter after Fenton and Lee (2017), (WEIGHTING_TAPS,).

    A high shelf of 5 dB at 1500 Hz, a peak of 2.5 dB at 500 Hz, a high-pass of the second order at 120 Hz and a
    low-pass of the first at 10 kHz, applied twice. The reference samples the response at 4097 points that do not
    include the Nyquist frequency, which makes its frequencies lower by 4096 / 4097.
    """
    bins = np.fft.rfftfreq(2 * WEIGHTING_POINTS, 1 / rate) * WEIGHTING_POINTS / (WEIGHTING_POINTS + 1)
    tangent = np.tan(np.pi * bins / rate)  # of the bilinear transform

    def relative(hertz: float) -> Array:
        return np.asarray(tangent / np.tan(np.pi * hertz / rate))

    def second_order(
        hertz: float, above: tuple[float, float, float], below: tuple[float, float, float]
    ) -> Array:
        s = 1j * relative(hertz)
        return np.asarray(abs(np.polyval(above, s) / np.polyval(below, s)))

    root = 10 ** (5 / 40)  # square root of the gain
    shelf_q = 1 / np.sqrt(2)
    shelf = second_order(
        1500,
        (root**2, root**1.5 / shelf_q, root),
        (1, np.sqrt(root) / shelf_q, root),
    )
    peak_gain, peak_q = 10 ** (2.5 / 40), 1.5 / np.sqrt(2)
    peak = second_order(500, (1, peak_gain / peak_q, 1), (1, 1 / (peak_gain * peak_q), 1))
    high_pass = relative(120) ** 2 / np.sqrt(1 + relative(120) ** 4)
    low_pass = 1 / (1 + relative(10_000) ** 2)
    response = np.fft.fftshift(np.fft.irfft(shelf * peak * high_pass * low_pass, 2 * WEIGHTING_POINTS))
    middle = WEIGHTING_POINTS + 1
    return np.asarray(response[middle - WEIGHTING_TAPS // 2 : middle + WEIGHTING_TAPS // 2])


def _weighted_energy(signals: Array, weighting: Array) -> Array:
    """Energy of each filtered signal, (c,)."""
    tail = len(weighting) - 1
    hop = BLOCK - tail
    spectrum = np.fft.rfft(weighting, BLOCK)
    energy = np.zeros(len(signals))
    padded = np.pad(signals, ((0, 0), (tail, BLOCK)))
    for start in range(0, signals.shape[1] + tail, hop):
        filtered = np.fft.irfft(np.fft.rfft(padded[:, start : start + BLOCK], BLOCK) * spectrum, BLOCK)
        energy += np.sum(filtered[:, tail:] ** 2, axis=1)
    return energy


def mel_decibels(signals: Array, rate: int) -> Array:
    """Levels of mel bands in dB, at least MEL_RANGE below the loudest, (c, spectra, MELS)."""
    filters = _mel_filters(rate)
    window = np.hanning(FFT + 1)[:-1]
    padded = np.pad(signals, ((0, 0), (FFT // 2, FFT // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT, axis=1)[:, ::HOP]
    levels = [
        np.abs(np.fft.rfft(frames[:, start : start + SPECTRA] * window)) @ filters.T
        for start in range(0, frames.shape[1], SPECTRA)
    ]
    decibels = 20 * np.log10(np.maximum(np.concatenate(levels, axis=1), MEL_FLOOR))
    return np.asarray(np.maximum(decibels, decibels.max() - MEL_RANGE))


def _mel_filters(rate: int) -> Array:
    """Slaney's triangular filters of equal area from 0 Hz to Nyquist, (MELS, FFT // 2 + 1), as librosa has them.

    The scale is linear up to 1 kHz, 15 mel, and from there on takes 27 mel for a factor of 6.4.
    """
    step, linear = np.log(6.4) / 27, 15.0
    highest = linear + np.log(rate / 2 / 1000) / step
    mels = np.linspace(0, highest, MELS + 2)
    edges = np.where(mels < linear, mels * 1000 / linear, 1000 * np.exp(step * (mels - linear)))
    low, centre, high = (edges[start : start + MELS, None] for start in range(3))
    bins = np.fft.rfftfreq(FFT, 1 / rate)
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low))
