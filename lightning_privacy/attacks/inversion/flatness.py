"""Training until the validation loss is flat: one rule for every network that an attacker trains."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_privacy.attacks.inversion.target import FitRecord
from lightning_privacy.errors import InputError

__all__ = ["FlatnessRule", "train_until_flat"]


@dataclass(frozen=True)
class FlatnessRule:
    """When a validation loss counts as flat.

    Every ``check_every`` steps the loss is compared with the last that was lower by the share ``gain`` than the one before.
    Where ``patience`` checks in a row are not lower by that share, the learning rate falls to ``factor`` of itself and
    training goes on from the best weights; after ``drops`` such falls, the next such stretch ends the training: flat.

    Args:
        max_steps: Optimizer steps at most; a loss that is not flat by then is said to be so.
        check_every: Steps between two checks.
        patience: Checks in a row.
        gain: Smallest share that counts as better.
        factor: Of the learning rate at each fall.
        drops: Falls.
    """

    max_steps: int = 6000  # chosen here: about three times what 32-pixel pictures took
    check_every: int = 50  # chosen here: a check costs a few steps
    patience: int = 3  # chosen here
    gain: float = 0.01  # chosen here: 0.04 dB
    factor: float = 0.25  # chosen here
    drops: int = 2  # chosen here: another fall gained less than 0.1 dB

    def __post_init__(self) -> None:
        """Refuse what would never check or never end."""
        if min(self.max_steps, self.check_every, self.patience) < 1 or self.drops < 0:
            raise InputError(
                f"Training until flat needs max_steps, check_every and patience of at least 1 and drops of at least 0, but "
                f"got {self}."
            )


def train_until_flat(
    network: nn.Module,
    loss: Callable[[], Tensor],
    validate: Callable[[], float],
    lr: float,
    rule: FlatnessRule,
) -> FitRecord:
    """Train a network with Adam until its validation loss is flat, and leave the best weights in it.

    Args:
        network: Trained in place; only its own parameters move.
        loss: Draws the next batch and returns its mean loss.
        validate: The validation loss of the network as it stands, in evaluation mode.
        lr: First learning rate.
        rule: When the loss is flat.

    Returns:
        How it went; ``converged`` is False where ``max_steps`` came first.

    Raises:
        InputError: the loss is not finite.
    """
    began = time.perf_counter()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    history: list[tuple[float, float]] = []
    best, kept, stale, drops, steps, running = float("inf"), _copy(network), 0, 0, 0, 0.0
    mark = float("inf")  # moves by whole gains alone: else a slow, steady fall would pass for none
    flat = False
    while steps < rule.max_steps and not flat:
        network.train()
        value = loss()
        gradients = torch.autograd.grad(value, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        steps += 1
        running += float(value.detach())
        if steps % rule.check_every and steps < rule.max_steps:
            continue
        network.eval()
        found = validate()
        if not running < float("inf") or not found < float("inf"):
            raise InputError(
                f"The attacker's loss became {found} after {steps} steps at a learning rate of {lr}; lower the rate."
            )
        history.append((running / ((steps - 1) % rule.check_every + 1), found))
        running = 0.0
        stale = 0 if found < mark * (1 - rule.gain) else stale + 1
        mark = found if stale == 0 else mark
        if found < best:
            best, kept = found, _copy(network)
        if stale < rule.patience:
            continue
        flat = drops == rule.drops
        drops, stale = drops + 1, 0
        network.load_state_dict(kept)
        for group in optimizer.param_groups:
            group["lr"] *= rule.factor
    network.load_state_dict(kept)
    network.eval().requires_grad_(False)
    note = "" if flat else f"The attacker's validation loss was not flat after {steps} steps; raise `max_steps`."
    return FitRecord(flat, tuple(history), steps, time.perf_counter() - began, note)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
