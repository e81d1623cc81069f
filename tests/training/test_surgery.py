"""A widened network computes the same function, and its copies diverge in training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor

import tfswa_sep
from tfswa_sep.model.config import PRESETS, ModelConfig
from tfswa_sep.model.unet import TfswaUNet
from training import checkpoint
from training.surgery import is_wider, widen

SMALL = Path(tfswa_sep.__file__).parent / "weights/small.safetensors"
NARROW = dataclasses.replace(
    PRESETS["small"],
    dims=(8, 16, 24, 40),
    tdfs=(4, 4, 0, 0),
    head_dim=8,
    branches=("time", "frequency", "window"),
)


def wider(config: ModelConfig, factor: float) -> ModelConfig:
    return dataclasses.replace(
        config,
        dims=tuple(round(dim * factor) for dim in config.dims),
        tdfs=tuple(round(hidden * factor) for hidden in config.tdfs),
        heads=round(config.heads * factor),
        head_dim=round(config.head_dim * factor),
    )


def spectrum(frames: int) -> Tensor:
    noise: Tensor = torch.randn(1, 4, 1025, frames, generator=torch.Generator().manual_seed(1))
    return noise


@pytest.mark.parametrize("factor", [1.5, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_a_widened_network_computes_the_same(factor: float, training: bool) -> None:
    torch.manual_seed(0)
    old = TfswaUNet(NARROW)
    for parameter in old.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    new = TfswaUNet(wider(NARROW, factor))
    assert is_wider(old.config, new.config) and not is_wider(new.config, old.config)
    new.load_state_dict(widen(old.state_dict(), old.config, new.config, new.state_dict()))
    old.train(training)
    new.train(training)
    mixture = spectrum(48)
    with torch.no_grad():
        before, after = old(mixture), new(mixture)
    assert (before - after).abs().max() < 1e-4 * mixture.abs().max()


def test_copies_diverge_with_the_first_gradient() -> None:
    torch.manual_seed(0)
    old = TfswaUNet(NARROW)
    new = TfswaUNet(wider(NARROW, 2))
    new.load_state_dict(widen(old.state_dict(), old.config, new.config, new.state_dict()))
    new(spectrum(32)).square().mean().backward()
    for name in ("encoder.1.blocks.0.layers.0.weight", "decoder.2.blocks.0.layers.0.weight"):
        gradient = new.get_parameter(name).grad
        assert gradient is not None
        first, copy = gradient.chunk(2)
        assert (first - copy).abs().max() > 0.1 * gradient.abs().max()


def test_attention_heads_must_keep_their_size() -> None:
    new = TfswaUNet(dataclasses.replace(wider(NARROW, 2), heads=4))
    old = TfswaUNet(NARROW)
    with pytest.raises(ValueError, match="6 features per attention head, the wider model 12"):
        widen(old.state_dict(), old.config, new.config, new.state_dict())


@pytest.mark.slow
def test_large_begins_as_small() -> None:
    small, large = TfswaUNet(PRESETS["small"]), TfswaUNet(PRESETS["large"])
    checkpoint.warm_start(small, SMALL)
    assert "408 of 408 tensors, widened" in checkpoint.warm_start(large, SMALL)
    mixture = spectrum(64) * 10
    with torch.no_grad():
        before, after = small.eval()(mixture), large.eval()(mixture)
    assert (before - after).abs().max() < 1e-4 * mixture.abs().max()
