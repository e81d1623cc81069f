"""The training loss: a weighted sum of terms on waveforms or spectra.

Only known stems count: a mixture of a voice and unlabelled music supervises only the vocals.
Axis letters: see `tfswa_sep.model.config`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tfswa_sep.constants import N_FFT
from tfswa_sep.model.stft_torch import istft, stft


def weighted_loss(
    spectrum: Tensor,
    mixture: Tensor,
    stems: Tensor,
    known: Tensor,
    *,
    weights: Any,
    mixture_spectrum: Tensor,
    inverse: Callable[..., Tensor] = istft,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the weighted sum and its terms by name. Terms with weight 0 are skipped.

    Args:
        spectrum: Output of the network, (b, s, 2c, f, t).
        mixture: (b, c, n)
        stems: True stems, (b, s, c, n).
        known: 1 for known stems, else 0, (b, s).
        weights: `training.loss`. With domain "waveform", the terms are waveform, sdr, stft, magnitude and
            consistency; with "spectrum" they are stft and sdr, which then need no inverse STFT.
        mixture_spectrum: Input of the network, (b, 2c, f, t).
        inverse: The inverse STFT.
    """
    terms: dict[str, Tensor] = {}
    if weights.domain == "spectrum":
        with torch.no_grad():
            targets = spectrum.new_empty(spectrum.shape)
            for target, stem in zip(targets.flatten(0, 1), stems.flatten(0, 1), strict=True):
                target.copy_(stft(stem[None])[0])  # on a CPU, all at once takes three times as long
        terms["stft"], terms["sdr"] = spectral_terms(
            spectrum, targets, known, mixture=mixture_spectrum, floor=weights.sdr_floor
        )
    else:
        estimate = inverse(spectrum, length=mixture.shape[-1])
        n_ffts = list(weights.n_ffts)
        if weights.get("waveform"):
            terms["waveform"] = waveform_l1(estimate, stems, known)
        if weights.get("sdr"):
            terms["sdr"] = negative_sdr(estimate, stems, known, mixture=mixture, floor=weights.sdr_floor)
        if weights.get("stft"):
            terms["stft"] = multi_resolution_stft_l1(estimate, stems, known, n_ffts=n_ffts, spectrum=spectrum)
        if weights.get("magnitude"):
            terms["magnitude"] = multi_resolution_magnitude(estimate, stems, known, n_ffts=n_ffts)
        if weights.get("consistency"):
            terms["consistency"] = mixture_consistency(estimate, mixture)
    return sum((weights[name] * term for name, term in terms.items()), mixture.new_zeros(())), terms


def _known_mean(error: Tensor, known: Tensor) -> Tensor:
    """Average `error` (b, s, ...) over known stems; 0 if none is known."""
    per_stem = error.flatten(2).mean(dim=2) if error.ndim > 2 else error
    return (per_stem * known).sum() / known.sum().clamp(min=1)


def waveform_l1(estimate: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Compute the mean absolute error. estimate, target (b, s, c, n), known (b, s) -> scalar"""
    return _known_mean((estimate - target).abs(), known)


def negative_sdr(estimate: Tensor, target: Tensor, known: Tensor, *, mixture: Tensor, floor: float) -> Tensor:
    """Compute the negative signal-to-distortion ratio in dB, with a floor relative to the mixture's power.

    L1 favours the median, which for a sparse stem such as drums is silence as long as the network is unsure. The
    logarithm of the squared error favours the mean, and is what SDR measures. The floor (after Wisdom et al.,
    arXiv:2006.12701) keeps the loss of silent stems finite. For errors far above the floor the logarithm is
    concave: a network that cannot tell which stem a tone belongs to then does best to give all of it to one of
    them, and a false sound in a silent stem costs more than a lost one.

    estimate, target (b, s, c, n), known (b, s), mixture (b, c, n) -> scalar
    """
    floor_energy = floor * mixture.square().sum(dim=(1, 2))[:, None] + 1e-8
    error = (estimate - target).square().sum(dim=(2, 3))
    return _known_mean(_floored_decibels(error, target.square().sum(dim=(2, 3)), floor_energy), known)


def _floored_decibels(error: Tensor, power: Tensor, floor: Tensor) -> Tensor:
    return 10 * torch.log10((error + floor) / (power + floor))


def spectral_terms(
    spectrum: Tensor, target: Tensor, known: Tensor, *, mixture: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """Compute L1 and negative SDR of the network's spectrum: without an inverse STFT, a third faster (measured).

    By Parseval's theorem the error of a spectrum is that of its waveform times a constant, except for the part
    that the inverse STFT removes. The scales are those of `multi_resolution_stft_l1` and `negative_sdr`.

    spectrum, target (b, s, 2c, f, t), known (b, s), mixture (b, 2c, f, t) -> two scalars
    """
    difference = spectrum - target
    floor_energy = floor * mixture.square().sum(dim=(1, 2, 3))[:, None] + 1e-8
    error, power = difference.square().sum(dim=(2, 3, 4)), target.square().sum(dim=(2, 3, 4))
    l1 = 2 / N_FFT**0.5 * _known_mean(difference.abs(), known)
    return l1, _known_mean(_floored_decibels(error, power, floor_energy), known)


def multi_resolution_stft_l1(
    estimate: Tensor, target: Tensor, known: Tensor, *, n_ffts: Sequence[int], spectrum: Tensor
) -> Tensor:
    """Compute the mean absolute error of complex spectra at several resolutions (Guso et al., arXiv:2202.07968).

    The hop is a quarter of the window. Spectra are orthonormal (divided by sqrt(n_fft)) and doubled, for the scale
    of the waveform term. At the network's own resolution its output is compared directly, which saves a transform.

    estimate, target (b, s, c, n), known (b, s), spectrum (b, s, 2c, f, t) of the estimate -> scalar
    """
    total = estimate.new_zeros(())
    for n_fft in n_ffts:
        if n_fft == N_FFT:
            with torch.no_grad():
                target_spectrum = stft(target.flatten(0, 1)).view(spectrum.shape)
            total = total + 2 / n_fft**0.5 * _known_mean((spectrum - target_spectrum).abs(), known)
            continue
        difference = _transform(estimate - target, n_fft)  # the STFT is linear: one transform is enough
        total = total + 2 * _known_mean(torch.view_as_real(difference).abs(), known)
    return total / len(n_ffts)


def multi_resolution_magnitude(
    estimate: Tensor, target: Tensor, known: Tensor, *, n_ffts: Sequence[int]
) -> Tensor:
    """Compute spectral convergence plus the L1 of log magnitudes, averaged over window lengths.

    Yamamoto et al., arXiv:1910.11480, equations 4 to 6. Magnitudes (of orthonormal spectra) have a floor of
    1e-3, 60 dB below full scale, to keep silence finite and ignore noise below it.

    estimate, target (b, s, c, n), known (b, s) -> scalar
    """
    total = estimate.new_zeros(())
    for n_fft in n_ffts:
        # The floor is inside the square root, whose slope is infinite at zero.
        estimated, true = (
            (torch.view_as_real(_transform(x, n_fft)).square().sum(dim=-1) + 1e-6).sqrt()
            for x in (estimate, target)
        )
        difference = (true - estimated).flatten(2).norm(dim=2)
        total = total + _known_mean(difference / true.flatten(2).norm(dim=2), known)
        total = total + _known_mean((true.log() - estimated.log()).abs(), known)
    return total / len(n_ffts)


def mixture_consistency(estimate: Tensor, mixture: Tensor) -> Tensor:
    """Compute the mean absolute difference between the sum of the stems and the mixture.

    estimate (b, s, c, n), mixture (b, c, n) -> scalar
    """
    return (estimate.sum(dim=1) - mixture).abs().mean()


def _transform(x: Tensor, n_fft: int) -> Tensor:
    """Compute an orthonormal STFT with a hop of a quarter. (b, s, c, n) -> complex (b, s, c, f, t)"""
    spectrum = torch.stft(
        x.flatten(0, 2),
        n_fft,
        n_fft // 4,
        window=torch.hann_window(n_fft, device=x.device),
        normalized=True,
        pad_mode="constant",
        return_complex=True,
    )
    return spectrum.view(*x.shape[:3], *spectrum.shape[1:])
