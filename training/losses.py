"""What training minimises: a weighted sum of terms on waveforms or on spectra.

Only known stems count: a mixture of voice and unlabelled music supervises its vocals alone.
Axis letters: see `tfswa_sep.model.config`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tfswa_sep.constants import N_FFT
from tfswa_sep.model.stft_torch import istft, stft


def weigh_terms(
    spectrum: Tensor,
    mixture: Tensor,
    stems: Tensor,
    known: Tensor,
    *,
    weights: Any,
    transformed: Tensor,
    inverse: Callable[..., Tensor] = istft,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and its terms by name; a term that weighs nothing is not computed.

    `weights.domain` "waveform" takes the terms waveform, sdr, stft, magnitude and consistency, with n_ffts
    for those that transform; "spectrum" takes stft and sdr, without an inverse transform.
    spectrum (b, s, 2c, f, t) from the network, mixture (b, c, n), stems (b, s, c, n), known (b, s),
    transformed (b, 2c, f, t): the mixture's spectrum, as the network saw it
    """
    terms: dict[str, Tensor] = {}
    if weights.domain == "spectrum":
        with torch.no_grad():
            wanted = spectrum.new_empty(spectrum.shape)
            for target, waves in zip(wanted.flatten(0, 1), stems.flatten(0, 1), strict=True):
                target.copy_(stft(waves[None])[0])  # all at once take three times as long, in main memory
        terms["stft"], terms["sdr"] = spectral_terms(
            spectrum, wanted, known, mixture=transformed, floor=weights.sdr_floor
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
    """Mean of `error` (b, s, ...) over everything, unknown stems left out; 0 if nothing is known."""
    per_stem = error.flatten(2).mean(dim=2) if error.ndim > 2 else error
    return (per_stem * known).sum() / known.sum().clamp(min=1)


def waveform_l1(estimate: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean absolute error. estimate, target (b, s, c, n), known (b, s) -> scalar"""
    return _known_mean((estimate - target).abs(), known)


def negative_sdr(estimate: Tensor, target: Tensor, known: Tensor, *, mixture: Tensor, floor: float) -> Tensor:
    """Minus the signal-to-distortion ratio in dB, with a floor of so much of the mixture's power.

    L1 prefers the median, which for a sparse stem such as drums is silence while the network is unsure;
    after 450 steps it kept a fifth of them. The logarithm of the squared error prefers the mean, and is what
    SDR measures. The floor (after Wisdom et al., arXiv:2006.12701) keeps silent stems finite. Where errors
    lie far above it the logarithm is concave: a network that cannot tell whose a tone is then does best to
    give all of it to one stem, and a false sound in a silent stem weighs more than a lost one.

    estimate, target (b, s, c, n), known (b, s), mixture (b, c, n) -> scalar
    """
    least = floor * mixture.square().sum(dim=(1, 2))[:, None] + 1e-8
    error = (estimate - target).square().sum(dim=(2, 3))
    return _known_mean(_floored_decibels(error, target.square().sum(dim=(2, 3)), least), known)


def _floored_decibels(error: Tensor, power: Tensor, floor: Tensor) -> Tensor:
    return 10 * torch.log10((error + floor) / (power + floor))


def spectral_terms(
    spectrum: Tensor, wanted: Tensor, known: Tensor, *, mixture: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """L1 and minus SDR on the network's own spectrum: no inverse transform, a third less work (measured).

    By Parseval's theorem the error of a spectrum is that of its waveform times a constant, apart from what
    no waveform can have. Scales are those of `multi_resolution_stft_l1` and `negative_sdr`.

    spectrum, wanted (b, s, 2c, f, t), known (b, s), mixture (b, 2c, f, t) -> two scalars
    """
    difference = spectrum - wanted
    least = floor * mixture.square().sum(dim=(1, 2, 3))[:, None] + 1e-8
    error, power = difference.square().sum(dim=(2, 3, 4)), wanted.square().sum(dim=(2, 3, 4))
    l1 = 2 / N_FFT**0.5 * _known_mean(difference.abs(), known)
    return l1, _known_mean(_floored_decibels(error, power, least), known)


def multi_resolution_stft_l1(
    estimate: Tensor, target: Tensor, known: Tensor, *, n_ffts: Sequence[int], spectrum: Tensor
) -> Tensor:
    """Mean absolute error of real and imaginary parts, averaged over window lengths, hops of a quarter.

    Spectra are orthonormal (divided by sqrt(n_fft)) and doubled: that is the waveform term's scale.
    Complex spectra at several resolutions: Guso et al., arXiv:2202.07968. At the network's own
    resolution its output is compared as it is, which saves a transform and its gradient.

    estimate, target (b, s, c, n), known (b, s), spectrum (b, s, 2c, f, t) of the estimate -> scalar
    """
    total = estimate.new_zeros(())
    for n_fft in n_ffts:
        if n_fft == N_FFT:
            with torch.no_grad():
                wanted = stft(target.flatten(0, 1)).view(spectrum.shape)
            total = total + 2 / n_fft**0.5 * _known_mean((spectrum - wanted).abs(), known)
            continue
        difference = _transform(estimate - target, n_fft)  # the STFT is linear: one transform, not two
        total = total + 2 * _known_mean(torch.view_as_real(difference).abs(), known)
    return total / len(n_ffts)


def multi_resolution_magnitude(
    estimate: Tensor, target: Tensor, known: Tensor, *, n_ffts: Sequence[int]
) -> Tensor:
    """Spectral convergence plus the mean difference of log magnitudes, averaged over window lengths.

    Yamamoto et al., arXiv:1910.11480, equations 4 to 6. Magnitudes (of orthonormal spectra) have a floor of
    1e-3, 60 dB under full scale, so that silence stays finite and noise under it does not count.

    estimate, target (b, s, c, n), known (b, s) -> scalar
    """
    total = estimate.new_zeros(())
    for n_fft in n_ffts:
        # The square root's slope is infinite at zero: the floor goes under it.
        found, wanted = (
            (torch.view_as_real(_transform(x, n_fft)).square().sum(dim=-1) + 1e-6).sqrt()
            for x in (estimate, target)
        )
        difference = (wanted - found).flatten(2).norm(dim=2)
        total = total + _known_mean(difference / wanted.flatten(2).norm(dim=2), known)
        total = total + _known_mean((wanted.log() - found.log()).abs(), known)
    return total / len(n_ffts)


def mixture_consistency(estimate: Tensor, mixture: Tensor) -> Tensor:
    """Mean absolute difference of the sum of all stems and the mixture: for stems that sum to it.

    estimate (b, s, c, n), mixture (b, c, n) -> scalar
    """
    return (estimate.sum(dim=1) - mixture).abs().mean()


def _transform(x: Tensor, n_fft: int) -> Tensor:
    """(b, s, c, n) -> orthonormal complex (b, s, c, f, t), hops of a quarter"""
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
