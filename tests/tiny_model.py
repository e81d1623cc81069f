"""A tiny network behind the STFT of the released models."""

from __future__ import annotations

import json
from typing import Any

from tfswa_sep.model.config import BRANCHES, Band, ModelConfig

TINY = ModelConfig(
    features="complex",
    masks="complex",
    tdfs=(),
    branches=BRANCHES,
    bands=(Band(start=0, stop=128, stride=8), Band(start=128, stop=1024, stride=56)),
    dims=(8, 16),
    convs=(1, 1),
    attentions=(0, 1),
    heads=2,
    window=(4, 4),
    head_dim=8,
    segment_samples=31 * 512,
    margin_samples=1024,
)

# The same as overrides, for the commands of training.
TINY_WORDS = [
    f"model.changes.{key}={json.dumps(value).replace(chr(34), '')}" for key, value in TINY.to_json().items()
]


# What `export` fills in, next to what it must leave alone.
REGISTRY = """\
# a comment that stays

[models.tiny]
summary = "tiny"

[[models.tiny.files]]
backend = "onnx"
where = "bundled:tiny.onnx"
sha256 = "00"
bytes = 1

[[models.tiny.files]]
backend = "torch"
where = "bundled:tiny.safetensors"
sha256 = "00"
bytes = 1

[models.other]
[[models.other.files]]
backend = "onnx"
where = "bundled:tiny.onnx"
sha256 = "00"
bytes = 1
"""


def randomize_norms(network: Any) -> None:
    """Give batch norms statistics and weights as after training, which a wrong fold would get wrong."""
    from torch import nn, rand, randn

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.3 * randn(module.num_features)
            module.running_var = 0.5 + rand(module.num_features)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
