"""Attention maps: the weights match the attention layers, and the image shows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
image = pytest.importorskip("PIL.Image")
pytest.importorskip("onnxscript")

from tiny_model import TINY
from torch import Tensor

from tfswa_sep.model.attention import FrequencyAttention, ShiftedWindowAttention, TimeAttention
from tfswa_sep.model.unet import TfswaUNet
from training.analysis import attention_maps

TWO_DEEP = dataclasses.replace(TINY, attentions=(0, 2))


@pytest.mark.parametrize("kind", ["time", "frequency", "window", "shifted window"])
def test_weights_match_the_attention_layers(kind: str) -> None:
    """The output of a layer is the average of its values with these weights."""
    torch.manual_seed(0)
    dim, f, t, at = 8, 8, 12, 5
    module: TimeAttention | FrequencyAttention | ShiftedWindowAttention
    if kind == "time":
        module = TimeAttention(dim, 1)
    elif kind == "frequency":
        module = FrequencyAttention(dim, 1)
    else:
        module = ShiftedWindowAttention(dim, 1, window=(4, 4), shifted=kind == "shifted window")
    with torch.no_grad():
        module.project.weight.copy_(torch.eye(dim))
        module.project.bias.zero_()
    x = torch.randn(1, f, t, dim)
    weights_by_kind: dict[str, Tensor] = {}
    module.register_forward_hook(attention_maps._make_hook(weights_by_kind, (at + 0.5) / t))
    with torch.inference_mode():
        output = module(x)[0, :, at]  # (f, d)
        values = module.qkv(x)[2][0]  # (f, t, d)
    (weights,) = weights_by_kind.values()
    if kind == "time":
        torch.testing.assert_close(torch.einsum("ft,ftd->fd", weights, values), output)
    elif kind == "frequency":
        torch.testing.assert_close(weights @ values[:, at], output)
    else:
        torch.testing.assert_close(torch.einsum("ft,ftd->d", weights, values), output.sum(dim=0))
        assert (weights.sum(dim=0) > 0).sum() == 4  # frames of one window


def test_the_command_draws_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    state = {"shape": TWO_DEEP.to_json(), "average": TfswaUNet(TWO_DEEP).state_dict(), "step": 1}
    torch.save(state, tmp_path / "a.ckpt")
    soundfile.write(tmp_path / "song.wav", np.random.default_rng(0).uniform(-0.3, 0.3, (44_100, 2)), 44_100)
    arguments = [
        str(tmp_path / "a.ckpt"),
        str(tmp_path / "song.wav"),
        "--out",
        str(tmp_path / "maps.png"),
        "--at",
    ]
    attention_maps.main([*arguments, "0.25"])
    with image.open(tmp_path / "maps.png") as picture:
        pixels = np.asarray(picture)
    width, height = attention_maps.PANEL
    assert pixels.shape == (4 * (height + 18), width, 3)
    for panel in range(4):
        assert pixels[panel * (height + 18) + 18 :][:height].std() > 5
    assert (pixels[30, width // 4] == (255, 0, 0)).all()  # the marked frame
    with pytest.raises(SystemExit, match="3"):
        attention_maps.main([*arguments, "7"])
    assert "which is 1.0 s long" in capsys.readouterr().err
