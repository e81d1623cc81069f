"""What training minimises: L1 on the waveform and on complex spectra at several resolutions, and minus SDR.

Only known stems count: a mixture of voice and unlabelled music supervises its vocals alone.
Axis letters: see `tfswa_sep.model.config`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tfswa_sep.model.transform import N_FFT, stft


def _known_mean(error: Tensor, known: Tensor) -> Tensor:
    """Mean of `error` (b, s, ...) over everything, unknown stems left out; 0 if nothing is known."""
    per_stem = error.flatten(2).mean(dim=2)
    return (per_stem * known).sum() / known.sum().clamp(min=1)


def waveform_l1(estimate: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean absolute error. estimate, target (b, s, c, n), known (b, s) -> scalar"""
    return _known_mean((estimate - target).abs(), known)


def negative_sdr(estimate: Tensor, target: Tensor, known: Tensor, *, mixture: Tensor) -> Tensor:
    """Minus the signal-to-distortion ratio in dB, with a floor 20 dB under the mixture.

    L1 prefers the median, which for a sparse stem such as drums is silence while the network is unsure;
    after 450 steps it kept a fifth of them. The logarithm of the squared error prefers the mean, and is what
    SDR measures. The floor (after Wisdom et al., arXiv:2006.12701) keeps silent stems finite.

    estimate, target (b, s, c, n), known (b, s), mixture (b, c, n) -> scalar
    """
    floor = 0.01 * mixture.square().sum(dim=(1, 2))[:, None] + 1e-8
    error = (estimate - target).square().sum(dim=(2, 3))
    ratio = 10 * torch.log10((target.square().sum(dim=(2, 3)) + floor) / (error + floor))
    return -(ratio * known).sum() / known.sum().clamp(min=1)


def spectral_terms(
    spectrum: Tensor, wanted: Tensor, known: Tensor, *, mixture: Tensor
) -> tuple[Tensor, Tensor]:
    """L1 and minus SDR on the network's own spectrum: no inverse transform, a third less work (measured).

    By Parseval's theorem the error of a spectrum is that of its waveform times a constant, apart from what
    no waveform can have. Scales are those of `multi_resolution_stft_l1` and `negative_sdr`.

    spectrum, wanted (b, s, 2c, f, t), known (b, s), mixture (b, 2c, f, t) -> two scalars
    """
    difference = spectrum - wanted
    count = difference[0, 0].numel()
    l1 = (difference.abs().sum(dim=(2, 3, 4)) / count * known).sum() / known.sum().clamp(min=1)
    floor = 0.01 * mixture.square().sum(dim=(1, 2, 3))[:, None] + 1e-8
    error, power = difference.square().sum(dim=(2, 3, 4)), wanted.square().sum(dim=(2, 3, 4))
    ratio = 10 * torch.log10((power + floor) / (error + floor))
    return 2 / N_FFT**0.5 * l1, -(ratio * known).sum() / known.sum().clamp(min=1)


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
        window = torch.hann_window(n_fft, device=estimate.device)
        difference = (estimate - target).flatten(0, 2)  # the STFT is linear: one transform instead of two
        parts = torch.stft(
            difference,
            n_fft,
            n_fft // 4,
            window=window,
            normalized=True,
            pad_mode="constant",
            return_complex=True,
        )
        mean = torch.view_as_real(parts).abs().mean(dim=(1, 2, 3))
        total = total + 2 * _known_mean(mean.view(*estimate.shape[:3]), known)
    return total / len(n_ffts)
