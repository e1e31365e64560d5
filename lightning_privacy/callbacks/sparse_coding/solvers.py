"""Solvers of the sparse-coding problem: the locally competitive algorithm (LCA) and FISTA, of fixed length."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_privacy.callbacks.sparse_coding.functional import Form, Geometry, Transfer, threshold
from lightning_privacy.callbacks.sparse_coding.operators import Operators
from lightning_privacy.errors import InputError

__all__ = ["Solver", "SolverSettings", "automatic_tau", "check_tau", "solve", "solve_checkpointed"]

Solver = Literal["lca", "fista"]
State = tuple[Tensor, ...]

RESTART_EVERY = 5
"""Iterations between FISTA's looks at whether it overshoots; chosen here: the look costs a tenth of an iteration."""


@dataclass(frozen=True)
class SolverSettings:
    """How a code is computed.

    Args:
        lam: lambda.
        tau: Time constant; a step is 1 / tau.
        solver: ``lca`` or ``fista``.
        iters: Iterations, each of which updates the code.
        form: ``residual`` or ``lateral``.
        nonneg: Whether codes may not be negative.
        transfer: ``soft`` or, for LCA, ``hard``.
    """

    lam: float
    tau: float
    solver: Solver = "fista"
    iters: int = 16
    form: Form = "residual"
    nonneg: bool = True
    transfer: Transfer = "soft"


def automatic_tau(largest: float, solver: Solver) -> float:
    """Return a safe time constant: ``1.01 L`` for FISTA, ``0.8 L`` for LCA.

    Args:
        largest: L, the largest eigenvalue of ``D^T D``.
        solver: ``lca`` or ``fista``.

    Example:
        >>> round(automatic_tau(10.0, "fista"), 3), automatic_tau(10.0, "lca")
        (10.1, 8.0)
    """
    # Chosen here: the grid on which L is measured misses less than 1 % of it; LCA is stable above L / 2.
    return 1.01 * largest if solver == "fista" else max(0.8 * largest, 1.0)


def check_tau(tau: float, largest: float, solver: Solver) -> None:
    """Refuse a step with which the solver diverges: LCA needs ``tau > L / 2``, FISTA ``tau >= L``.

    Args:
        tau: Time constant.
        largest: L.
        solver: ``lca`` or ``fista``.

    Raises:
        InputError: the step is too long.
    """
    least = largest if solver == "fista" else largest / 2
    if not tau > least:
        what = "L" if solver == "fista" else "L / 2"
        raise InputError(
            f"Sparse coding with `tau` = {tau:.4g} (a step of {1 / tau:.4g}) diverges: {solver} needs tau above {what} = "
            f"{least:.4g}, with L = {largest:.4g} the largest eigenvalue of this dictionary. Raise `tau`, or leave it null "
            "to have it chosen."
        )


def solve(
    signal: Float[Tensor, "batch channels rows columns"],
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    geometry: Geometry,
    settings: SolverSettings,
    start: Float[Tensor, "batch atoms places_down places_across"] | None = None,
) -> Float[Tensor, "batch atoms places_down places_across"]:
    """Return the code after a fixed number of iterations; a graph through all of them where gradients are on.

    Each signal's code depends on that signal alone.

    - LCA (Rozell et al. 2008): ``u <- u + (D^T (s - D a) + a - u) / tau``, ``a = T_lambda(u)``, from ``u = 0``.
    - FISTA (Beck and Teboulle 2009): ``a <- T_(lambda/tau)(y + D^T (s - D y) / tau)`` with momentum y, which is dropped
      for a signal whose last step went against it (O'Donoghue and Candes, arXiv 1204.3982, equation 12).

    Args:
        signal: s.
        atoms: Phi, of unit norm.
        geometry: Stride and padding.
        settings: How.
        start: A code to start from instead of 0.

    Example:
        >>> s, phi = torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1)
        >>> solve(s, phi, Geometry(padding=(0, 0)), SolverSettings(lam=0.5, tau=1.0)).item()
        1.5
    """
    problem = _Problem(signal, atoms, geometry, settings)
    state = problem.start(start)
    for iteration in range(settings.iters):
        state = problem.step(state, iteration)
    return problem.code(state)


def solve_checkpointed(
    signal: Float[Tensor, "batch channels rows columns"],
    atoms: Float[Tensor, "atoms channels kernel_rows kernel_columns"],
    geometry: Geometry,
    settings: SolverSettings,
    start: Float[Tensor, "batch atoms places_down places_across"] | None = None,
) -> Float[Tensor, "batch atoms places_down places_across"]:
    """Return the code of `solve`, keeping for the backward pass one state in every root of ``iters``.

    Args:
        signal: s.
        atoms: Phi, of unit norm.
        geometry: Stride and padding.
        settings: How.
        start: A code to start from instead of 0.
    """
    problem = _Problem(signal, atoms, geometry, settings)
    state = problem.start(start)
    length = max(1, round(settings.iters**0.5))
    for first in range(0, settings.iters, length):
        run = _segment(problem.step, first, min(first + length, settings.iters))
        state = checkpoint(run, *state, use_reentrant=False, preserve_rng_state=False)
    return problem.code(state)


def _segment(step: Callable[[State, int], State], first: int, end: int) -> Callable[..., State]:
    def run(*state: Tensor) -> State:
        for iteration in range(first, end):
            state = step(state, iteration)
        return state

    return run


class _Problem:
    """One signal batch with its operators; a state is (u,) for LCA and (a, y, t) for FISTA."""

    def __init__(self, signal: Tensor, atoms: Tensor, geometry: Geometry, settings: SolverSettings) -> None:
        size = (signal.shape[2], signal.shape[3])
        self.operators = Operators(atoms, size, geometry, settings.form)
        self.signal, self.settings, self.rate = signal, settings, 1 / settings.tau
        self.in_place = not torch.is_grad_enabled()
        self.b = self.operators.encode(signal)
        self.cold = True
        if settings.solver == "fista" and settings.transfer == "hard":
            raise InputError("FISTA needs a convex penalty, which `transfer: hard` has not; use `solver: lca` with it.")

    def start(self, code: Tensor | None) -> State:
        s = self.settings
        self.cold = code is None
        if s.solver == "fista":
            first = torch.zeros_like(self.b) if code is None else code.to(self.b)
            return first, first, self.b.new_ones(len(self.b), 1, 1, 1)
        if code is None:
            return (torch.zeros_like(self.b),)
        return (code.to(self.b) + (s.lam * code.sign() if s.transfer == "soft" else 0),)

    def _drive(self, code: Tensor, iteration: int) -> Tensor:
        if iteration == 0 and self.cold:  # of a code of zeros it is b; a copy, because it is worked on in place
            return self.b.clone()
        return self.operators.drive(self.signal, self.b, code)

    def step(self, state: State, iteration: int) -> State:
        if self.settings.solver == "lca":
            return self._lca(state[0], iteration)
        code, y, t = state
        return self._fista(code, y, t, iteration)

    def code(self, state: State) -> Tensor:
        return self._threshold(state[0], self.settings.lam) if self.settings.solver == "lca" else state[0]

    def _threshold(self, u: Tensor, lam: float) -> Tensor:
        s = self.settings
        if self.in_place and s.nonneg and s.transfer == "soft":
            return u.sub(lam).relu_()
        return threshold(u, lam, nonneg=s.nonneg, transfer=s.transfer)

    def _lca(self, u: Tensor, iteration: int) -> State:
        code = self._threshold(u, self.settings.lam)
        target = self._drive(code, iteration)
        if self.in_place:
            return (u.lerp_(target.add_(code), self.rate),)
        return (torch.lerp(u, target + code, self.rate),)

    def _fista(self, code: Tensor, y: Tensor, t: Tensor, iteration: int) -> State:
        drive = self._drive(y, iteration)
        s = self.settings
        if self.in_place and s.nonneg:
            new = torch.add(y, drive, alpha=self.rate, out=drive).sub_(s.lam * self.rate).relu_()
        else:
            new = self._threshold(torch.add(y, drive, alpha=self.rate), s.lam * self.rate)
        if iteration % RESTART_EVERY == RESTART_EVERY - 1:
            with torch.no_grad():  # the choice is no part of the gradient
                against = ((y - new) * (new - code)).sum((1, 2, 3), keepdim=True) > 0
                t = torch.where(against, torch.ones_like(t), t)
        later = (1 + (1 + 4 * t.square()).sqrt()) / 2
        return new, torch.lerp(code, new, 1 + (t - 1) / later), later
