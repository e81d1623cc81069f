"""What training minimises: L1 on the waveform, and L1 on complex spectra at several resolutions.

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


def multi_resolution_stft_l1(
    estimate: Tensor, target: Tensor, known: Tensor, *, n_ffts: Sequence[int], spectrum: Tensor
) -> Tensor:
    """Mean absolute error of real and imaginary parts, averaged over window lengths, hops of a quarter.

    Spectra are orthonormal (divided by sqrt(n_fft)) and doubled, which lays them on the waveform term's scale.
    Complex spectra at several resolutions: Guso et al., arXiv:2202.07968, section 3. At the network's own
    resolution its output is compared as it is, which saves a transform and its gradient.

    estimate, target (b, s, c, n), known (b, s), spectrum (b, s, 2c, f, t) of the estimate -> scalar
    """
    total = estimate.new_zeros(())
    for n_fft in n_ffts:
        if n_fft == N_FFT:
            with torch.no_grad():
                wanted = stft(target.flatten(0, 1)).unflatten(0, target.shape[:2])
            total = total + 2 / n_fft**0.5 * _known_mean((spectrum - wanted).abs(), known)
            continue
        window = torch.hann_window(n_fft, device=estimate.device)
        difference = (estimate - target).flatten(0, 2)  # the STFT is linear: one transform instead of two
        parts = torch.stft(
            difference, n_fft, n_fft // 4, window=window, normalized=True, pad_mode="constant", return_complex=True
        )
        mean = torch.view_as_real(parts).abs().mean(dim=(1, 2, 3))
        total = total + 2 * _known_mean(mean.view(*estimate.shape[:3]), known)
    return total / len(n_ffts)
