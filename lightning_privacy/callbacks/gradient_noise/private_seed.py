"""Seeds that nobody can guess, the same on every rank and after an interruption."""

import secrets
from typing import Any

import lightning.pytorch as L
import torch

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["StepNoise"]


class StepNoise:
    """Gives the generator of each step's noise: a function of a seed and of the number of optimizer steps before it.

    So a resumed run draws what the uninterrupted one would have drawn, and every rank draws the same. Who knows the seed
    subtracts the noise, so that by default it is drawn from the operating system's entropy and kept in the state.

    Args:
        owner: Name of the defence, part of the key.
        seed: The seed; None for one that nobody knows.

    Example:
        >>> noise = StepNoise("x", 0)
        >>> draws = [torch.rand(1, generator=noise.generator(step, "cpu")).item() for step in (0, 1, 0)]
        >>> draws[0] == draws[2] != draws[1]
        True
    """

    def __init__(self, owner: str, seed: int | None) -> None:
        self.owner, self.given = owner, seed
        self.seed = seed

    def prepare(self, trainer: L.Trainer) -> None:
        """Draw the seed where none was given, and give it to every rank.

        Args:
            trainer: Its strategy has joined the process group.
        """
        self.seed = trainer.strategy.broadcast(secrets.randbits(63)) if self.given is None else self.given

    def generator(self, step: int, device: torch.device | str) -> torch.Generator:
        """Return the generator of one step.

        Args:
            step: Optimizer steps taken before it.
            device: Where noise is drawn.
        """
        return seeded_generator(self.owner, self.key(), step, device=device)

    def key(self) -> int:
        """Return the seed.

        Raises:
            InputError: there is none yet.
        """
        if self.seed is None:
            raise InputError(f"`{self.owner}` has no seed before training starts; give `seed`, or call it in a fit.")
        return self.seed

    def state_dict(self) -> dict[str, Any]:
        """Return the seed that was drawn; nothing where it was given."""
        return {} if self.given is not None else {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the seed of the run that is continued; a seed that was given stays.

        Args:
            state: As `state_dict` returned it.
        """
        if self.given is None:
            self.seed = state.get("seed", self.seed)
