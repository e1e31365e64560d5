r"""L-BFGS on many problems at once, each with its own curvature, its own line search and its own end."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_privacy.attacks.leakage.optimiser import Best, Confine, Objective, Trace
from lightning_privacy.attacks.leakage.unknowns import Variables

__all__ = ["LBFGS"]

Rows = Float[Tensor, "restarts numbers"]
_LONGEST_SEARCH = 20  # halvings and doublings of one line search; then the memory is dropped, and once more ends it
_ARMIJO, _CURVATURE = 1e-4, 0.9  # Nocedal and Wright 2006, section 3.1


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a weak-Wolfe line search by bisection.

    Every evaluation serves all restarts: while one still searches along its line, another may already take its next step.
    The line search asks for a sufficient fall and a flatter slope, so that the curvature pairs stay positive, also on
    objectives that are not smooth.

    Args:
        evaluations: Evaluations of the objective and its gradient, all restarts counting as one.
        memory: Curvature pairs.

    Source:
        Nocedal and Wright, "Numerical Optimization", 2006, algorithm 7.4; line search of Lewis and Overton, "Nonsmooth
        optimization via quasi-Newton methods", 2013, section 2.
    """

    evaluations: int = 300
    memory: int = 100

    def minimise(self, objective: Objective, start: Variables, confine: Confine | None = None) -> Trace:
        """Return the best that was found of each restart; see `Minimiser`.

        Variables are confined once, at the end: the curvature is that of the unconfined objective.
        """
        shapes = {name: value.shape for name, value in start.items()}
        point = torch.cat([value.detach().flatten(1) for value in start.values()], 1)
        best = Best(start, self.evaluations)

        def unpack(rows: Rows) -> Variables:
            parts = rows.split([shape[1:].numel() for shape in shapes.values()], 1)
            return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

        def evaluate(rows: Rows) -> tuple[Tensor, Rows]:
            rows = rows.detach().requires_grad_()
            variables = unpack(rows)
            losses = objective(variables)
            (slope,) = torch.autograd.grad(losses.sum(), rows)
            best.offer(variables, losses.detach())
            return losses.detach(), slope

        value, slope = evaluate(point)
        memory = _Memory(self.memory, point)
        direction = -slope
        # The first step has no curvature to go by; a step of at most length 1 is torch.optim.LBFGS's choice too.
        length = (1 / slope.abs().sum(1)).clamp(max=1.0)
        low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
        searched = torch.zeros_like(value, dtype=torch.long)
        alive = torch.isfinite(value) & (slope.abs().amax(1) > 0)
        while best.count < self.evaluations and bool(alive.any()):
            trial = point + torch.where(alive, length, 0)[:, None] * direction
            new_value, new_slope = evaluate(trial)
            descent, new_descent = (slope * direction).sum(1), (new_slope * direction).sum(1)
            finite = torch.isfinite(new_value) & torch.isfinite(new_slope).all(1)
            falls = finite & (new_value <= value + _ARMIJO * length * descent)
            flatter = new_descent >= _CURVATURE * descent
            searched += 1
            taken = alive & falls & (flatter | (searched >= _LONGEST_SEARCH))
            high = torch.where(falls, high, length)
            low = torch.where(falls & ~flatter, length, low)
            length = torch.where(torch.isinf(high), 2 * low, (low + high) / 2)
            memory.store(trial - point, new_slope - slope, taken)
            stuck = alive & ~taken & (searched >= _LONGEST_SEARCH)
            alive = alive & ~(stuck & (memory.count == 0))
            memory.forget(stuck)
            fresh = (taken | stuck)[:, None]
            point = torch.where(taken[:, None], trial, point)
            value = torch.where(taken, new_value, value)
            slope = torch.where(taken[:, None], new_slope, slope)
            if bool(fresh.any()):
                direction = torch.where(fresh, -memory.apply(slope), direction)
                first = (1 / slope.abs().sum(1)).clamp(max=1.0)
                length = torch.where(fresh[:, 0], torch.where(memory.count == 0, first, 1.0), length)
                low, high = torch.where(fresh[:, 0], 0.0, low), torch.where(fresh[:, 0], torch.inf, high)
                searched = torch.where(fresh[:, 0], 0, searched)
            alive = alive & (slope.abs().amax(1) > 0)
        if confine is not None:
            kept = confine(best.variables)
            best.variables = kept
        return best.trace()


class _Memory:
    """Curvature pairs of every restart, in ring buffers, and their inner products.

    The direction comes from the compact form (Nocedal and Wright 2006, theorem 7.4, for the inverse): a few batched products
    where the usual recursion takes two small ones a pair.
    """

    def __init__(self, size: int, like: Rows) -> None:
        restarts, numbers = like.shape
        self.size = size
        self.pairs = like.new_zeros(restarts, 2 * size, numbers)
        """Steps, then what they changed the slope by: in one block, because reading it is most of the work."""
        self.step_bend, self.bend_bend = like.new_zeros(2, restarts, size, size)
        self.scale = like.new_ones(restarts)
        self.age = torch.zeros(restarts, size, dtype=torch.long, device=like.device)
        """When a pair was stored, from 1; 0 is an empty place."""
        self.clock = 0

    @property
    def count(self) -> Int[Tensor, " restarts"]:
        """Return how many pairs each restart has."""
        return (self.age > 0).sum(1)

    def store(self, step: Rows, bend: Rows, mask: Bool[Tensor, " restarts"]) -> None:
        product = (step * bend).sum(1)
        rows = (mask & (product > torch.finfo(step.dtype).eps * bend.square().sum(1))).nonzero().flatten()
        if not len(rows):
            return
        self.clock += 1
        at = self.age[rows].argmin(1)
        self.pairs[rows, at], self.pairs[rows, self.size + at], self.age[rows, at] = step[rows], bend[rows], self.clock
        # of all restarts, not of `rows`: picking those would copy the block
        of_step, of_bend = self._products(step)[rows], self._products(bend)[rows]
        self.step_bend[rows, :, at] = of_bend[:, : self.size]
        self.step_bend[rows, at] = of_step[:, self.size :]
        self.bend_bend[rows, at] = self.bend_bend[rows, :, at] = of_bend[:, self.size :]
        self.scale[rows] = product[rows] / bend[rows].square().sum(1)

    def forget(self, mask: Bool[Tensor, " restarts"]) -> None:
        if not bool(mask.any()):
            return
        for held in (self.pairs, self.step_bend, self.bend_bend, self.age):
            held[mask] = 0
        self.scale[mask] = 1

    def apply(self, slope: Rows) -> Rows:
        """Return the inverse Hessian's estimate times the slope."""
        order = self.age.argsort(1)
        back = order.argsort(1)
        rows = torch.arange(len(order), device=order.device)[:, None]
        both = rows[..., None], order[:, :, None], order[:, None, :]
        cross, scale = self.step_bend[both], self.scale[:, None]
        empty = (self.age == 0).gather(1, order)
        triangle = cross.triu() + torch.diag_embed(empty.to(slope))
        along, bent = self._products(slope).split(self.size, 1)
        along, bent = along.gather(1, order), scale * bent.gather(1, order)
        inner = torch.linalg.solve_triangular(triangle, along[..., None], upper=True)
        mixed = cross.diagonal(dim1=1, dim2=2)[..., None] * inner + scale[..., None] * self.bend_bend[both] @ inner
        outer = torch.linalg.solve_triangular(triangle.mT, mixed - bent[..., None], upper=False)
        weights = torch.cat([outer[..., 0].gather(1, back), -scale * inner[..., 0].gather(1, back)], 1)
        return scale * slope + (weights[:, None] @ self.pairs)[:, 0]

    def _products(self, numbers: Rows) -> Float[Tensor, "restarts pairs"]:
        # a row times the transpose: on CPUs up to five times as fast as the block times a column
        return (numbers[:, None] @ self.pairs.mT)[:, 0]
