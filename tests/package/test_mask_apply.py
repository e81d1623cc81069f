"""Features and masks in NumPy, and the graph between them, against the network as it is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_model import randomize_norms
from torch import nn

from tfswa_sep.inference.features import band_features
from tfswa_sep.inference.mask_apply import masked_frames
from tfswa_sep.inference.stft_numpy import stft
from tfswa_sep.model import mask_head
from tfswa_sep.model.blocks import FrequencyLinear
from tfswa_sep.model.config import BRANCHES, Band, ModelConfig
from tfswa_sep.model.unet import TfswaUNet
from training.release.onnx_graph import MaskNetwork

SHAPES: dict[str, dict[str, Any]] = {
    "bands": {
        "bands": (
            Band(start=0, stop=64, stride=2),
            Band(start=64, stop=256, stride=4),
        ),
        "attentions": (0, 1),
        "window": (4, 4),
    },
    "independent masks": {"bands": (Band(start=0, stop=256, stride=4),), "mixture_consistent": False},
    "gains": {"bands": (Band(start=0, stop=256, stride=4),), "masks": "real"},
    "two branches": {
        "bands": (Band(start=0, stop=256, stride=4),),
        "attentions": (0, 2),
        "window": (4, 4),
        "branches": ("time", "window"),
    },
    "equal branches": {
        "bands": (Band(start=0, stop=256, stride=4),),
        "attentions": (0, 1),
        "window": (4, 4),
        "fusion": "mean",
    },
    "signed": {"bands": (Band(start=0, stop=256, stride=4),), "masks": "signed"},
    "filters": {
        "bands": (Band(start=0, stop=64, stride=2, taps=3), Band(start=64, stop=256, stride=4, taps=1)),
        "masks": "signed",
        "features": "advance",
    },
    "filters alone": {
        "bands": (Band(start=0, stop=192, stride=4), Band(start=192, stop=256, stride=4, taps=5)),
        "mixture_consistent": False,
    },
    "filters and gains": {"bands": (Band(start=0, stop=256, stride=4, taps=3),), "masks": "real"},
    "filters and complex masks": {"bands": (Band(start=0, stop=256, stride=4, taps=1),)},
    "all frequencies mixed": {"bands": (Band(start=0, stop=256, stride=4),), "tdfs": (16, 8)},
    "signed alone": {
        "bands": (Band(start=0, stop=256, stride=4),),
        "masks": "signed",
        "mixture_consistent": False,
    },
    "stacked magnitudes": {
        "stems": ("vocals",),
        "split": "stack",
        "features": "magnitude",
        "masks": "real",
        "bands": tuple(Band(start=64 * i, stop=64 * (i + 1), stride=1) for i in range(4)),
        "attentions": (0, 1),
        "window": (4, 4),
        "fusion": "serial",
        "mixture_consistent": False,
    },
}


def build(shape: dict[str, Any]) -> TfswaUNet:
    """A small network with statistics that a wrong fold would get wrong."""
    torch.manual_seed(0)
    tiny: dict[str, Any] = {"dims": (8, 8), "convs": (1, 1), "attentions": (0, 0), "head_dim": 8}
    tiny |= {"features": "complex", "masks": "complex", "tdfs": (), "branches": BRANCHES}
    network = TfswaUNet(ModelConfig(n_fft=512, hop=128, **(tiny | shape)))
    randomize_norms(network)
    for module in network.modules():
        if isinstance(module, FrequencyLinear):
            nn.init.normal_(module.expand.weight, std=0.3)
            nn.init.uniform_(module.scale, 0.5, 1.5)
    for head in network.heads:
        for band, conv in zip(network.config.bands, head.convs, strict=True):  # type: ignore[arg-type]
            nn.init.normal_(conv.bias, std=0.5)
            nn.init.normal_(conv.weight[network.config.mask_parts * band.stride :], std=0.1)
    return network.eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frames", [1, 37, pytest.param(300, marks=pytest.mark.slow)])
def test_features_graph_and_masks_are_the_networks(shape: str, frames: int) -> None:
    network = build(SHAPES[shape])
    config = network.config
    random = np.random.default_rng(frames)
    samples = random.standard_normal((2, 2, (frames - 1) * 128 + 1)).astype(np.float32) * np.float32(0.1)
    spectrum = stft(samples, n_fft=512, hop=128)
    parts = np.stack([spectrum.real, spectrum.imag], axis=2).reshape(2, 4, 257, -1)
    mixture = torch.from_numpy(parts)
    with torch.inference_mode():
        wanted = network(mixture).numpy()
        seen = mask_head.band_features(mixture[:, :, :256], config)
        bands = band_features(spectrum, config)
        masks = [band.numpy() for band in MaskNetwork(network)(*map(torch.from_numpy, bands))]
    for found, expected in zip(bands, seen, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)
    wanted = (wanted[:, :, 0::2] + 1j * wanted[:, :, 1::2]).reshape(2, -1, 257, frames)
    for item in range(2):
        chunks = masked_frames([band[item] for band in masks], spectrum[item], config, len(config.stems))
        found = np.concatenate([chunk.copy() for chunk in chunks], axis=1).swapaxes(1, 2)
        np.testing.assert_allclose(found, wanted[item], atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("shape", ["bands", "gains", "signed", "filters"])
def test_stems_are_mixed_before_the_inverse_transform(shape: str) -> None:
    config = build(SHAPES[shape]).config
    random = np.random.default_rng(0)
    spectrum = stft(random.standard_normal((2, 4000)).astype(np.float32), n_fft=512, hop=128)
    bands = [
        random.standard_normal(
            (4 * config.head_parts(band) * band.stride, band.tokens, spectrum.shape[-1])
        ).astype(np.float32)
        for band in config.bands
    ]
    mix = np.array([[1, 1, 0, 0], [0, 0, 0.5, 0], [1, 1, 1, 1]], np.float32)
    apart = np.concatenate([chunk.copy() for chunk in masked_frames(bands, spectrum, config, 4)], axis=1)
    mixed = np.concatenate([chunk.copy() for chunk in masked_frames(bands, spectrum, config, mix)], axis=1)
    wanted = np.einsum("ks,sctf->kctf", mix, apart.reshape(4, 2, *apart.shape[1:]))
    np.testing.assert_allclose(mixed.reshape(wanted.shape), wanted, atol=1e-4)
    np.testing.assert_allclose(mixed[4:], spectrum.swapaxes(1, 2), atol=1e-4)  # the stems sum to the mixture


@pytest.mark.parametrize("masks", ["complex", "signed", "real"])
def test_training_can_hook_what_filters_were_added_to(masks: str) -> None:
    """Fabric does so with all that a network returns, and torch crashes on a view changed in place."""
    config = ModelConfig.from_json({"masks": masks})
    bands = [band for band in config.bands if band.taps]
    logits = torch.zeros(1, 4, config.mask_parts, config.bins, 3, requires_grad=True)
    filters = [
        torch.zeros(1, 4, config.filter_parts(band), band.stop - band.start, 3, requires_grad=True)
        for band in bands
    ]
    stems = mask_head.apply_masks(logits, filters, torch.ones(1, 4, config.bins + 1, 3), config)
    assert not stems._is_view()  # a hook on one would be a segmentation fault, which no test survives
    stems.register_hook(lambda gradient: gradient)  # type: ignore[no-untyped-call]
    stems.sum().backward()  # type: ignore[no-untyped-call]
    assert filters and all(part.grad is not None for part in filters)
