"""The gradient of a code by the implicit function theorem: no iteration of the solver is kept."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_privacy.callbacks.sparse_coding.functional import Form, Geometry
from lightning_privacy.callbacks.sparse_coding.operators import Operators

__all__ = ["active_set_solve", "with_implicit_gradient"]


def active_set_solve(
    operators: Operators,
    gradient: Float[Tensor, "batch atoms places_down places_across"],
    active: Bool[Tensor, "batch atoms places_down places_across"],
    iters: int,
    damping: float = 0.0,
    tolerance: float = 1e-6,  # chosen here: single precision gives no more
) -> Float[Tensor, "batch atoms places_down places_across"]:
    """Solve ``(D_A^T D_A + damping) w = g_A`` for each signal by conjugate gradients; w is 0 off the active set A.

    Args:
        operators: Of the dictionary.
        gradient: g.
        active: A.
        iters: At most so many; truncation leaves the directions to which the code is least determined small.
        damping: Added to the diagonal.
        tolerance: A signal is done when its residual has shrunk to this share.
    """
    mask = active.to(gradient.dtype)
    residual = gradient * mask
    solution, direction = torch.zeros_like(residual), residual
    size = _dot(residual, residual)
    goal = size * tolerance**2
    for _ in range(iters):
        running = size > goal
        if not bool(running.any()):
            break
        image = operators.gram(direction) * mask + damping * direction
        curvature = _dot(direction, image)
        running = running & (curvature > 0)
        # Signals that are done stand still, so that none depends on its neighbours in the batch.
        rate = torch.where(running, size / torch.where(running, curvature, 1.0), 0.0)
        solution = solution + rate * direction
        residual = residual - rate * image
        new = _dot(residual, residual)
        direction = residual + torch.where(running, new / torch.where(running, size, 1.0), 0.0) * direction
        size = torch.where(running, new, torch.zeros_like(new))
    return solution


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((1, 2, 3), keepdim=True)


def with_implicit_gradient(
    code: Float[Tensor, "batch atoms places_down places_across"],
    signal: Float[Tensor, "batch channels rows columns"],
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    geometry: Geometry,
    form: Form,
    iters: int,
    damping: float = 0.0,
) -> Float[Tensor, "batch atoms places_down places_across"]:
    """Return a code, computed without a graph, with the gradient that it has as the solution for its signal and atoms.

    On the active set A the optimum satisfies ``D_A^T (s - D_A a) = lambda sign(a)``, and A is constant nearby. Hence with
    ``w = (D_A^T D_A)^-1 g_A`` the gradient is that of ``<w, D^T (s - D a)>`` in s and Phi with a and w held fixed; in
    s it is ``D w``. It is exact where the code is the optimum, and an approximation where it is not yet.

    Args:
        code: a.
        signal: s.
        atoms: Phi.
        geometry: Stride and padding.
        form: Which fixed point the code is near.
        iters: Conjugate-gradient iterations, at most.
        damping: Added to the diagonal of ``D_A^T D_A``, which is singular where more units are active than a signal has
            values, as codes of few iterations may be.
    """
    return _FixedPoint.apply(code, signal, atoms, geometry, form, iters, damping)


class _FixedPoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, code: Tensor, signal: Tensor, atoms: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(code, signal, atoms)
        ctx.how = how
        return code.view_as(code)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        code, signal, atoms = ctx.saved_tensors
        geometry, form, iters, damping = ctx.how
        size = (signal.shape[2], signal.shape[3])
        with torch.autocast(signal.device.type, enabled=False):
            w = active_set_solve(Operators(atoms, size, geometry, form), gradient, code != 0, iters, damping)
            if not ctx.needs_input_grad[2]:
                operators = Operators(atoms, size, geometry, form)
                return None, operators.decode(w), *(None for _ in range(1 + len(ctx.how)))
            with torch.enable_grad():
                inputs = [
                    x.detach().requires_grad_(needed)
                    for x, needed in zip((signal, atoms), ctx.needs_input_grad[1:3], strict=True)
                ]
                operators = Operators(inputs[1], size, geometry, form)
                inner = (w * operators.drive(inputs[0], operators.encode(inputs[0]), code)).sum()
            wanted = [x for x in inputs if x.requires_grad]
            found = iter(torch.autograd.grad(inner, wanted))
        return None, *(next(found) if x.requires_grad else None for x in inputs), *(None for _ in ctx.how)
