"""Muon's update, and the weights that it is used for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from training.optimizer import Muon, make_optimizer, orthogonalize


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_an_update_keeps_singular_vectors_and_equalizes_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    values = torch.linspace(0.2, 3.0, min(shape))
    update = orthogonalize(left @ torch.diag(values) @ right.T)
    turned = left.T @ update @ right
    even = turned.diagonal()
    assert ((even > 0.6) & (even < 1.3)).all()
    assert (turned - torch.diag(even)).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(6, 54), (54, 6)])
def test_a_matrix_of_rank_one(shape: tuple[int, int]) -> None:
    """Rounding errors must not grow."""
    torch.manual_seed(0)
    update = orthogonalize(torch.outer(torch.randn(shape[0]), torch.randn(shape[1])))
    values = torch.linalg.svdvals(update)
    assert 0.6 < values[0] < 1.3 and values[1:].max() < 0.01


def test_a_convolution_is_updated_like_its_matrix() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    convolution = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    matrix = nn.Parameter(start.flatten(1).clone())
    for weight, slope in ((convolution, gradient), (matrix, gradient.flatten(1))):
        optimizer = Muon([{"params": [weight], "orthogonal": True}], lr=0.1, weight_decay=0.5)
        weight.grad = slope.clone()
        optimizer.step()
    assert torch.allclose(convolution.flatten(1), matrix, atol=1e-6)
    # After weight decay, the update is as large as a typical one of AdamW.
    moved = (matrix - 0.95 * start.flatten(1)).square().mean().sqrt() / 0.1
    assert 0.1 < moved < 0.3


def test_muon_gets_the_matrices_and_adamw_the_rest() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1), nn.Linear(16, 8))
    settings = SimpleNamespace(optimizer="muon", learning_rate=1e-3, weight_decay=1e-2)
    optimizer = make_optimizer(model, settings)
    names = {id(weight): name for name, weight in model.named_parameters()}
    held = [sorted(names[id(w)] for w in group["params"]) for group in optimizer.param_groups]
    assert held[1] == ["0.weight", "3.weight"]  # a layer with two outputs is too small
    assert sorted(held[0] + held[1]) == sorted(names.values())
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        settings.optimizer = name
        assert type(make_optimizer(model, settings)) is kind


def test_the_rest_is_updated_by_adamw() -> None:
    torch.manual_seed(0)
    start, slopes = torch.randn(5), torch.randn(3, 5)
    alone, beside = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    matrix = nn.Parameter(torch.randn(8, 8))
    groups = [{"params": [beside], "orthogonal": False}, {"params": [matrix], "orthogonal": True}]
    both = Muon(groups, lr=0.1, weight_decay=0.5)
    adamw = torch.optim.AdamW([alone], lr=0.1, weight_decay=0.5)
    for slope in slopes:
        alone.grad, beside.grad, matrix.grad = slope.clone(), slope.clone(), torch.randn(8, 8)
        both.step()
        adamw.step()
    assert torch.equal(alone, beside)
    assert len(both.param_groups) == 2


def test_an_unknown_optimizer_is_rejected() -> None:
    settings = SimpleNamespace(optimizer="sgd", learning_rate=1e-3, weight_decay=0.0)
    with pytest.raises(ValueError, match="sgd"):
        make_optimizer(nn.Linear(2, 2), settings)
