"""A network grown from another computes the same, and its copies part."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiny_model import TINY
from torch import Tensor

import tfswa_sep
from tfswa_sep.model.config import PRESETS, ModelConfig
from tfswa_sep.model.unet import TfswaUNet
from training import checkpoint
from training.surgery import deepened, is_wider, widened

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
    found: Tensor = torch.randn(1, 4, 1025, frames, generator=torch.Generator().manual_seed(1))
    return found


@pytest.mark.parametrize("factor", [1.5, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_a_widened_network_computes_the_same(factor: float, training: bool) -> None:
    torch.manual_seed(0)
    old = TfswaUNet(NARROW)
    for parameter in old.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    new = TfswaUNet(wider(NARROW, factor))
    assert is_wider(old.config, new.config) and not is_wider(new.config, old.config)
    new.load_state_dict(widened(old.state_dict(), old.config, new.config, new.state_dict()))
    old.train(training)
    new.train(training)
    mixture = spectrum(48)
    with torch.no_grad():
        before, after = old(mixture), new(mixture)
    assert (before - after).abs().max() < 1e-4 * mixture.abs().max()


def test_copies_part_with_the_first_gradient() -> None:
    torch.manual_seed(0)
    old = TfswaUNet(NARROW)
    new = TfswaUNet(wider(NARROW, 2))
    new.load_state_dict(widened(old.state_dict(), old.config, new.config, new.state_dict()))
    new(spectrum(32)).square().mean().backward()
    for name in ("encoder.1.blocks.0.layers.0.weight", "decoder.2.blocks.0.layers.0.weight"):
        gradient = new.get_parameter(name).grad
        assert gradient is not None
        first, copy = gradient.chunk(2)
        assert (first - copy).abs().max() > 0.1 * gradient.abs().max()


def test_features_per_attention_head_stay() -> None:
    new = TfswaUNet(dataclasses.replace(wider(NARROW, 2), heads=4))
    old = TfswaUNet(NARROW)
    with pytest.raises(ValueError, match="6 features per attention head, the wider model 12"):
        widened(old.state_dict(), old.config, new.config, new.state_dict())


@pytest.mark.slow
def test_large_begins_as_small() -> None:
    small, large = TfswaUNet(PRESETS["small"]), TfswaUNet(PRESETS["large"])
    checkpoint.warm_start(small, SMALL)
    said = checkpoint.warm_start(large, SMALL)
    assert "408 of 408 tensors, widened" in said
    mixture = spectrum(64) * 10
    with torch.no_grad():
        before, after = small.eval()(mixture), large.eval()(mixture)
    assert (before - after).abs().max() < 1e-4 * mixture.abs().max()


@pytest.mark.parametrize("deeper", [(3, 2), (1, 4), (5, 5)])
def test_a_deepened_network_computes_the_same(deeper: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    old = TfswaUNet(dataclasses.replace(TINY, convs=(1, 2))).eval()
    new = TfswaUNet(dataclasses.replace(TINY, convs=deeper)).eval()
    weights, begun = deepened(old.state_dict(), old.config, new)
    assert begun and len(new.state_dict()) > len(weights)
    new.load_state_dict(weights | begun, strict=False)
    mixture = spectrum(32)
    with torch.no_grad():
        torch.testing.assert_close(new(mixture), old(mixture))


def test_a_block_that_would_cut_off_what_attention_gave_does_not_begin_as_the_identity() -> None:
    old = TfswaUNet(TINY)  # one convolution in the last stage
    new = TfswaUNet(dataclasses.replace(TINY, convs=(1, 3)))
    _, begun = deepened(old.state_dict(), old.config, new)
    assert "decoder.1.blocks.0.layers.4.weight" not in begun
