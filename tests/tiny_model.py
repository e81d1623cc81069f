"""The transform of the product, and as little network as there can be behind it."""

from __future__ import annotations

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
