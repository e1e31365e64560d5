"""Minimisers that run all restarts of a search side by side, each on its own.

An objective takes variables with a leading dimension of restarts and returns one loss each. Restarts in one batch are measured
to be faster than a loop already on one CPU core (two to four times on LeNet in float32), and fill a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_privacy.attacks.leakage.unknowns import Variables

__all__ = ["FirstOrder", "Minimiser", "Objective", "Trace"]

Objective = Callable[[Variables], Float[Tensor, " restarts"]]
Confine = Callable[[Variables], Variables]
_CHECKS = 50  # how many losses a history keeps
_LEAST_FALL = 0.05  # chosen here: a loss that the last tenth of a search lowered by less than 5 % is flat


@dataclass(frozen=True)
class Trace:
    """How a search went.

    Args:
        variables: The best variables of each restart.
        losses: Their losses.
        flat: Whether the last tenth of the evaluations lowered a restart's loss by less than 5 %.
        history: The best loss of each restart so far, at regular checks.
        evaluations: Evaluations of the objective and its gradient, all restarts counting as one.
    """

    variables: Variables
    losses: Float[Tensor, " restarts"]
    flat: Bool[Tensor, " restarts"]
    history: Float[Tensor, "checks restarts"]
    evaluations: int


@runtime_checkable
class Minimiser(Protocol):
    """An algorithm that lowers an objective from given starts."""

    def minimise(self, objective: Objective, start: Variables, confine: Confine | None = None) -> Trace:
        """Return the best that was found of each restart.

        Args:
            objective: Variables -> one loss a restart.
            start: Variables with a leading dimension of restarts.
            confine: Applied to the variables after every step.
        """
        ...


class Best:
    """The best variables of each restart so far, and their history."""

    def __init__(self, start: Variables, evaluations: int) -> None:
        restarts = len(next(iter(start.values())))
        self.variables = {name: value.detach().clone() for name, value in start.items()}
        like = next(iter(start.values()))
        self.losses = torch.full((restarts,), torch.inf, dtype=torch.float64, device=like.device)
        self.seen: list[Tensor] = []
        self.every = max(1, evaluations // _CHECKS)
        self.count = 0

    def offer(self, variables: Variables, losses: Float[Tensor, " restarts"]) -> None:
        """Take what is better; a loss that is not a number never is."""
        better = losses.double() < self.losses
        for name, value in variables.items():
            mask = better.reshape(-1, *[1] * (value.dim() - 1))
            self.variables[name] = torch.where(mask, value.detach(), self.variables[name])
        self.losses = torch.where(better, losses.double(), self.losses)
        if self.count % self.every == 0:
            self.seen.append(self.losses.clone())
        self.count += 1

    def trace(self) -> Trace:
        """Return the outcome."""
        history = torch.stack([*self.seen, self.losses])
        before = history[-max(2, len(history) // 10 + 1)]
        flat = torch.isfinite(self.losses) & (self.losses >= (1 - _LEAST_FALL) * before)
        return Trace(self.variables, self.losses, flat, history, self.count)


@dataclass(frozen=True)
class FirstOrder:
    """Adam, Adam on signs of the gradient, or RMSprop.

    Args:
        steps: Steps.
        learning_rate: At the start.
        rule: ``signed_adam`` feeds Adam with the gradient's signs, of every variable.
        decays: Whether the rate is divided by 10 after 3/8, 5/8 and 7/8 of the steps.

    Source:
        arXiv 2003.14053, section 5 and appendix (signs, rate, decay).
    """

    steps: int
    learning_rate: float | int = 0.1  # arXiv 2003.14053, appendix
    rule: Literal["adam", "signed_adam", "rmsprop"] = "signed_adam"
    decays: bool = True

    def minimise(self, objective: Objective, start: Variables, confine: Confine | None = None) -> Trace:
        """Return the best that was found of each restart; see `Minimiser`."""
        now = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        if self.rule == "rmsprop":
            stepper: torch.optim.Optimizer = torch.optim.RMSprop(now.values(), lr=self.learning_rate, momentum=0.99)
        else:
            stepper = torch.optim.Adam(now.values(), lr=self.learning_rate)
        drops = {int(self.steps * share) for share in (3 / 8, 5 / 8, 7 / 8)} if self.decays else set()
        best = Best(start, self.steps)
        for step in range(self.steps):
            if step in drops:
                for group in stepper.param_groups:
                    group["lr"] *= 0.1
            losses = objective(now)
            best.offer(now, losses.detach())
            slopes = torch.autograd.grad(losses.sum(), list(now.values()))
            for value, slope in zip(now.values(), slopes, strict=True):
                value.grad = slope.sign() if self.rule == "signed_adam" else slope
            stepper.step()
            if confine is not None:
                with torch.no_grad():
                    for name, value in confine({name: value.detach() for name, value in now.items()}).items():
                        now[name].copy_(value)
        best.offer(now, objective(now).detach())
        return best.trace()
