"""The optimizer: Muon for the matrices and convolutions, AdamW for everything else.

Muon moves every weight matrix by the nearest orthogonal matrix to its averaged gradient, so that the
directions in which the gradient is small are learnt as fast as the others. Sources: K. Jordan et al., "Muon:
an optimizer for hidden layers in neural networks", 2024 (https://kellerjordan.github.io/posts/muon/), and for
the scale that lets it share AdamW's learning rate Liu et al., arXiv:2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from training.distributed import cut_like

ADAM_RMS = 0.2  # of AdamW's usual update, by Liu et al., equation 4
MOMENTUM = 0.95
SMALLEST_SIDE = 8  # a matrix with fewer rows or columns is no hidden layer


class Muon(torch.optim.AdamW):
    """Muon for the groups that say `orthogonal`, AdamW for the others: one optimizer, as fp16's scaler wants.

    Nesterov momentum; a convolution's weight (out, in, ...) is taken as a matrix (out, in * positions).
    torch.optim.Muon refuses convolutions, and multiplies in bf16, which many processors only emulate.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        groups = self.param_groups
        for group in groups:
            if group["orthogonal"]:
                self._move_matrices(group)
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _move_matrices(self, group: dict[str, Any]) -> None:
        rate = group["lr"]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["average"] = torch.zeros_like(weight.grad)
                state["step"] = torch.zeros(())  # AdamW expects one when it is loaded
            average = state["average"].lerp_(weight.grad, 1 - MOMENTUM)
            update = orthogonalize(weight.grad.lerp(average, MOMENTUM).flatten(1))
            scale = ADAM_RMS * max(update.shape) ** 0.5
            weight.mul_(1 - rate * group["weight_decay"])
            weight.add_(update.view(weight.shape), alpha=-rate * scale)


def orthogonalize(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """A matrix with the singular vectors of `matrix` (m, n) and singular values between about 0.7 and 1.2.

    Newton and Schulz's iteration with Jordan's coefficients, which trade exactness for speed. Each step is a
    polynomial of x x^T, so the steps are taken on that square of the shorter side, and the long one is
    multiplied twice in all: two fifths of the work for a convolution. Squares need products in full float32.
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


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `state_dict` gave, with whole averages also where the weights are pieces."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = {
        i: {key: cut_like(x, weights[i]) if x.shape == weights[i].shape else x for key, x in averages.items()}
        for i, averages in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": kept})


def make_optimizer(model: nn.Module, settings: Any) -> torch.optim.Optimizer:
    """What `settings.optimizer` names: adam, adamw, or muon (AdamW for vectors and narrow layers).

    Raises ValueError for another name.
    """
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
    taken = {id(weight) for weight in matrices}
    rest = [weight for weight in weights if id(weight) not in taken]
    groups = [{"params": rest, "orthogonal": False}, {"params": matrices, "orthogonal": True}]
    return Muon(groups, lr=rate, weight_decay=decay)
