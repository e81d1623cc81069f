"""The optimizer: Muon for matrices and convolutions, AdamW for everything else; and the average of the weights.

Muon updates each weight matrix by the orthogonal matrix nearest to its averaged gradient, so that directions with
a small gradient are learned as fast as the others. Sources: K. Jordan et al., "Muon: An optimizer for hidden layers
in neural networks", 2024 (https://kellerjordan.github.io/posts/muon/); Liu et al., arXiv:2502.16982, for the scale
that lets Muon use AdamW's learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from training.distributed import shard_like

ADAM_RMS = 0.2  # of a typical AdamW update: Liu et al., equation 4
MOMENTUM = 0.95
SMALLEST_SIDE = 8  # rows or columns; smaller matrices are left to AdamW


class Muon(torch.optim.AdamW):
    """Muon for parameter groups with `orthogonal`, AdamW for the others: the fp16 scaler needs a single optimizer.

    Uses Nesterov momentum, and treats a convolution's weight (out, in, ...) as a matrix (out, in * positions).
    torch.optim.Muon rejects convolutions, and multiplies in bf16, which many CPUs only emulate.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        groups = self.param_groups
        for group in groups:
            if group["orthogonal"]:
                self._update_matrices(group)
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _update_matrices(self, group: dict[str, Any]) -> None:
        rate = group["lr"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["average"] = torch.zeros_like(weight.grad)
                state["step"] = torch.zeros(())  # AdamW expects it when loading a state
            average = state["average"].lerp_(weight.grad, 1 - MOMENTUM)
            update = orthogonalize(weight.grad.lerp(average, MOMENTUM).flatten(1))
            scale = ADAM_RMS * max(update.shape) ** 0.5
            weight.mul_(1 - rate * group["weight_decay"])
            weight.add_(update.view(weight.shape), alpha=-rate * scale)


def orthogonalize(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """Return a matrix with the singular vectors of `matrix` (m, n) and singular values of about 0.7 to 1.2.

    This is the Newton-Schulz iteration with Jordan's coefficients, which trade accuracy for speed. Each step is a
    polynomial of x x^T, so the iteration works on that small square matrix and multiplies the long side only twice:
    two fifths of the work for a convolution. Squaring needs full float32 products.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = (matrix.T if tall else matrix).float()
    x = x / (x.norm() + 1e-7)
    gram, identity = x @ x.T, torch.eye(len(x), device=x.device)
    step: Tensor = a * identity + b * gram + c * gram @ gram
    total = step
    for _ in range(steps - 1):
        gram = step @ gram @ step
        step = a * identity + b * gram + c * gram @ gram
        total = step @ total
    x = total @ x
    return x.T.contiguous() if tall else x


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an unsharded state dict, sharding its tensors like the weights."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    sharded = {
        i: {
            key: shard_like(x, weights[i]) if x.shape == weights[i].shape else x for key, x in tensors.items()
        }
        for i, tensors in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})


def make_optimizer(model: nn.Module, settings: Any) -> torch.optim.Optimizer:
    """Create the optimizer `settings.optimizer`: adam, adamw or muon. Raises ValueError for other names."""
    rate, decay = settings.learning_rate, settings.weight_decay
    weights = list(model.parameters())
    if settings.optimizer == "adam":
        return torch.optim.Adam(weights, lr=rate, weight_decay=decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)
    if settings.optimizer != "muon":
        raise ValueError(f"unknown optimizer {settings.optimizer!r}: choose adam, adamw or muon")
    layers = (nn.Conv2d, nn.Linear)
    matrices = [cast(nn.Parameter, m.weight) for m in model.modules() if isinstance(m, layers)]
    matrices = [w for w in matrices if min(w.shape[0], w[0].numel()) >= SMALLEST_SIDE]
    orthogonal = {id(weight) for weight in matrices}
    rest = [weight for weight in weights if id(weight) not in orthogonal]
    groups = [{"params": rest, "orthogonal": False}, {"params": matrices, "orthogonal": True}]
    return Muon(groups, lr=rate, weight_decay=decay)


class WeightAverage:
    """Exponential moving average of a model's weights and batch norm statistics."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    def update(self, model: nn.Module, step: int) -> None:
        """Include the weights of a step."""
        decay = min(self.decay, (1 + step) / (10 + step))  # forgets early weights sooner
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    self.state[key].lerp_(value, 1 - decay)
                else:
                    self.state[key].copy_(value)
