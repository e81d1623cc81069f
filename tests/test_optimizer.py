"""Muon's update against its definition, and which weights it gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from training.optimizer import Muon, make_optimizers, orthogonalize  # noqa: E402


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_an_update_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    values = torch.linspace(0.2, 3.0, min(shape))
    update = orthogonalize(left @ torch.diag(values) @ right.T)
    turned = left.T @ update @ right
    even = turned.diagonal()
    assert ((even > 0.6) & (even < 1.3)).all()
    assert (turned - torch.diag(even)).abs().max() < 1e-4


def test_a_convolution_moves_as_its_matrix_does() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    convolution = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    matrix = nn.Parameter(start.flatten(1).clone())
    for weight, slope in ((convolution, gradient), (matrix, gradient.flatten(1))):
        optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
        weight.grad = slope.clone()
        optimizer.step()
    assert torch.allclose(convolution.flatten(1), matrix, atol=1e-6)
    # Decay takes a twentieth; the rest has the size that AdamW's update of the same rate usually has.
    moved = (matrix - 0.95 * start.flatten(1)).square().mean().sqrt() / 0.1
    assert 0.1 < moved < 0.3


def test_muon_gets_the_matrices_and_adamw_the_rest() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1), nn.Linear(16, 8))
    settings = SimpleNamespace(optimizer="muon", learning_rate=1e-3, weight_decay=1e-2)
    adamw, muon = make_optimizers(model, settings)
    names = {id(weight): name for name, weight in model.named_parameters()}
    held = [sorted(names[id(w)] for w in o.param_groups[0]["params"]) for o in (adamw, muon)]
    assert held[1] == ["0.weight", "3.weight"]  # two rows of outputs are no hidden layer
    assert sorted(held[0] + held[1]) == sorted(names.values())
    settings.optimizer = "adamw"
    assert [type(o) for o in make_optimizers(model, settings)] == [torch.optim.AdamW]


def test_another_name_is_refused() -> None:
    settings = SimpleNamespace(optimizer="sgd", learning_rate=1e-3, weight_decay=0.0)
    with pytest.raises(ValueError, match="sgd"):
        make_optimizers(nn.Linear(2, 2), settings)
