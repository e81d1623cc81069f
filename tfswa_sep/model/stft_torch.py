"""The STFT around the network, differentiable and on any device: for training and for the torch backend on a GPU.

On a CPU both backends use the same transforms in NumPy (`tfswa_sep.inference.stft_numpy`).
Axis letters: see `tfswa_sep.model.config`.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tfswa_sep.constants import HOP, N_FFT


def stft(x: Tensor, *, n_fft: int = N_FFT, hop: int = HOP) -> Tensor:
    """STFT: (b, c, n) -> (b, 2c, f, t), real and imaginary parts as channels, t = n // hop + 1."""
    window = torch.hann_window(n_fft, device=x.device)
    spectrum = torch.stft(
        x.flatten(0, 1), n_fft, hop, window=window, pad_mode="constant", return_complex=True
    )
    parts = x.new_empty(len(spectrum), 2, *spectrum.shape[1:])
    parts[:, 0], parts[:, 1] = spectrum.real, spectrum.imag  # three times as fast as rearranging view_as_real
    return parts.view(x.shape[0], -1, *spectrum.shape[1:])


def istft(spectrum: Tensor, *, length: int, n_fft: int = N_FFT, hop: int = HOP) -> Tensor:
    """Inverse STFT: (b, s, 2c, f, t) -> (b, s, c, length)."""
    window = torch.hann_window(n_fft, device=spectrum.device)
    parts = rearrange(spectrum, "b s (c two) f t -> (b s c) f t two", two=2).contiguous()
    x = torch.istft(torch.view_as_complex(parts), n_fft, hop, window=window, length=length)
    waves: Tensor = x.view(*spectrum.shape[:2], spectrum.shape[2] // 2, length)
    return waves


def separate_waveform(network: nn.Module, mixture: Tensor, *, n_fft: int = N_FFT, hop: int = HOP) -> Tensor:
    """Separate waveforms: (b, c, n) -> (b, s, c, n), float32."""
    stems = network(stft(mixture, n_fft=n_fft, hop=hop))
    return istft(stems, length=mixture.shape[-1], n_fft=n_fft, hop=hop)
