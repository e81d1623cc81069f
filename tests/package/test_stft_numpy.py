from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa_sep.inference.stft_numpy import add_frames, istft, stft

Noise = Callable[..., NDArray[np.float32]]
LENGTHS = (1, 511, 512, 513, 2047, 44_107)


@pytest.mark.parametrize("length", LENGTHS)
def test_inverse_gives_the_samples_back(noise: Noise, length: int) -> None:
    samples = noise(2, length, peak=1.0)
    spectrum = stft(samples)
    assert spectrum.dtype == np.complex64
    assert spectrum.shape == (2, 1025, length // 512 + 1)
    restored = istft(spectrum, length=length)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, samples, atol=1e-5)


def test_frame_is_the_fourier_transform_of_windowed_samples(noise: Noise) -> None:
    samples = noise(1, 4096)[0]
    frame, n_fft, hop = 5, 256, 64
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    centred = samples[frame * hop - n_fft // 2 : frame * hop + n_fft // 2] * window
    bins = np.arange(n_fft // 2 + 1)[:, None]
    expected = (centred * np.exp(-2j * np.pi * bins * np.arange(n_fft) / n_fft)).sum(axis=1)
    np.testing.assert_allclose(stft(samples, n_fft=n_fft, hop=hop)[:, frame], expected, atol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_torch(noise: Noise, length: int) -> None:
    torch = pytest.importorskip("torch")
    samples = noise(2, length)
    window = torch.hann_window(2048)
    theirs = torch.stft(
        torch.from_numpy(samples),
        2048,
        512,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    ours = stft(samples)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5 * np.abs(theirs.numpy()).max())
    changed = ours * np.linspace(0.2, 1, 1025, dtype=np.float32)[:, None]
    inverse = torch.istft(
        torch.from_numpy(np.ascontiguousarray(changed)), 2048, 512, window=window, length=length
    ).numpy()
    np.testing.assert_allclose(istft(changed, length=length), inverse, atol=1e-5)


@pytest.mark.parametrize("window", ("hann", "none"))
@pytest.mark.parametrize("hop", (64, 100, 128))
def test_any_hop_and_window_equal_torch(noise: Noise, window: str, hop: int) -> None:
    torch = pytest.importorskip("torch")
    samples = noise(2, 3_000)
    weights = torch.hann_window(256) if window == "hann" else torch.ones(256)
    expected = torch.stft(
        torch.from_numpy(samples), 256, hop, window=weights, pad_mode="reflect", return_complex=True
    )
    padded = np.pad(samples, ((0, 0), (128, 128)), mode="reflect")
    spectrum = stft(padded, n_fft=256, hop=hop, window=window, centred=False)
    np.testing.assert_allclose(spectrum, expected.numpy(), atol=1e-5 * expected.abs().max())
    changed = spectrum * np.linspace(0.2, 1, 129, dtype=np.float32)[:, None]
    length = 3_000 // hop * hop  # no frame covers what lies behind
    inverse = torch.istft(
        torch.from_numpy(np.ascontiguousarray(changed)), 256, hop, window=weights, length=length
    )
    ours = istft(changed, n_fft=256, hop=hop, window=window, length=length)
    np.testing.assert_allclose(ours, inverse.numpy(), atol=1e-5)


@pytest.mark.parametrize("frames", (1, 7, 60))
def test_frames_may_come_in_chunks(noise: Noise, frames: int) -> None:
    spectrum = stft(noise(3, 5000), n_fft=256, hop=64)
    lying = spectrum.swapaxes(1, 2)  # (c, t, f)
    chunks = [lying[:, start : start + frames] for start in range(0, lying.shape[1], frames)]
    samples = np.full((len(spectrum), 5000), np.nan, np.float32)
    add_frames(chunks, spectrum.shape, n_fft=256, hop=64, out=samples)
    np.testing.assert_allclose(samples, istft(spectrum, n_fft=256, hop=64, length=5000), atol=1e-6)


def test_samples_after_the_last_frame_are_zero(noise: Noise) -> None:
    restored = istft(stft(noise(1, 1000), n_fft=256, hop=64), n_fft=256, hop=64, length=5000)
    assert restored.shape == (1, 5000)
    assert not restored[:, 1200:].any()


def test_refuses_what_cannot_be_inverted(noise: Noise) -> None:
    with pytest.raises(ValueError, match="hop of 129 samples does not suit frames of 256"):
        stft(noise(1, 1000), n_fft=256, hop=129)
    with pytest.raises(ValueError, match="257 bins, not 129"):
        istft(stft(noise(1, 1000), n_fft=256, hop=64), n_fft=512, hop=64, length=1000)
