"""Our spectrogram against torchaudio's, which we did not write; `make test-audio` runs it."""

from __future__ import annotations

import numpy as np
import pytest

from tfswa_sep.inference.stft_numpy import istft, stft

pytestmark = pytest.mark.torchaudio


def test_the_spectrogram_is_torchaudios() -> None:
    transforms = pytest.importorskip("torchaudio.transforms", exc_type=ImportError)
    torch = pytest.importorskip("torch")
    samples = np.random.default_rng(0).uniform(-1, 1, (2, 44_100)).astype(np.float32)
    theirs = transforms.Spectrogram(n_fft=2048, hop_length=512, power=None, pad_mode="constant")(
        torch.from_numpy(samples)
    )
    ours = stft(samples)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs.numpy()).max() < 1e-3  # sums of 2048 samples: 1e-6 of their largest
    back = transforms.InverseSpectrogram(n_fft=2048, hop_length=512)(theirs, length=samples.shape[1])
    assert np.abs(istft(ours, length=samples.shape[1]) - back.numpy()).max() < 1e-5
