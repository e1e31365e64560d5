"""Minimising one objective a row, all rows in one batch, so that no row feels another."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["descend"]

_EPSILON = 1e-12  # Adam's usual 1e-8 would stand still where a defence makes gradients small but not zero


def descend(
    objective: Callable[[Tensor], Tensor],
    start: Float[Tensor, "rows ..."],
    steps: int,
    lr: float | int,
    betas: tuple[float, float] = (0.9, 0.999),
    cosine: bool = True,
) -> Float[Tensor, "rows ..."]:
    """Return where Adam ends on the sum of the rows' objectives.

    Adam treats each number for itself, so that a row's path is that of the row alone. Gradients are taken with respect to
    the variable only: no weight of a model gets one.

    Args:
        objective: Rows -> one number a row, which may depend on that row alone.
        start: Where to begin.
        steps: Steps.
        lr: First learning rate.
        betas: Of Adam.
        cosine: Let the rate fall to zero along a half cosine.

    Example:
        >>> descend(lambda x: (x - 3).square().sum(1), torch.zeros(2, 1), 200, 0.3).round(decimals=2).tolist()
        [[3.0], [3.0]]
    """
    variable = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=lr, betas=betas, eps=_EPSILON)
    for step in range(steps):
        if cosine:
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.enable_grad():
            (variable.grad,) = torch.autograd.grad(objective(variable).sum(), variable)
        optimizer.step()
    return variable.detach()
