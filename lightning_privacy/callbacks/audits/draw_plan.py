"""The fixed (timestep, noise) draws on which every record is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lightning_privacy.core.randomness import derive_seed, seeded_generator
from lightning_privacy.protocols import Draw, HasSampleDraw

__all__ = ["DEFAULT_TIMESTEPS", "DrawPlan", "draws_itself"]

DEFAULT_TIMESTEPS = tuple(range(50, 951, 100))  # chosen here: ten, evenly over 0 to 1000 without the extremes


def draws_itself(module: Any) -> bool:
    """Return whether a module draws from the global random state, where it must be pinned, and not by `sample_draw`."""
    return not isinstance(module, HasSampleDraw)


@dataclass(frozen=True)
class DrawPlan:
    """Timesteps shared by all records, and noise that is a function of (seed, record, draw) alone.

    Batch size, order, rank count and the model's state change nothing in it, so that runs and epochs are compared on
    the same draws.

    Args:
        timesteps: Diffusion steps.
        per_timestep: Noises at each.
        seed: Of the noise.
    """

    timesteps: tuple[int, ...] = DEFAULT_TIMESTEPS
    per_timestep: int = 2
    seed: int = 0

    @classmethod
    def of(cls, timesteps: Sequence[int] | None, draws: int, seed: int) -> "DrawPlan":
        """Return a plan from an audit's arguments."""
        return cls(DEFAULT_TIMESTEPS if timesteps is None else tuple(timesteps), draws, seed)

    def __len__(self) -> int:
        return max(1, len(self.timesteps)) * self.per_timestep

    def schedule(self) -> torch.Tensor:
        """Return the timestep of each draw."""
        return torch.tensor(self.timesteps).repeat_interleave(self.per_timestep)

    def fit_to(self, module: Any, batch: Any) -> "DrawPlan":
        """Return the plan for a module: without timesteps where it has none, one draw where it has no randomness.

        Args:
            module: A module; without `sample_draw` it is taken to draw from the global random state.
            batch: Any batch.
        """
        if draws_itself(module):
            return self
        template = module.sample_draw(batch, seeded_generator(self.seed, "template"))
        if template.timesteps is not None:
            return self
        return replace(self, timesteps=(), per_timestep=1 if template.noise is None else self.per_timestep)

    def draws(self, module: Any, batch: Any, ids: Sequence[str]) -> list[Draw | None]:
        """Return all draws of a batch; None for each where the module draws by itself.

        Args:
            module: The module.
            batch: The batch.
            ids: Identity of its records.
        """
        if draws_itself(module):
            return [None] * len(self)
        # Shapes, types and device are the module's; the values are ours.
        template = module.sample_draw(batch, seeded_generator(self.seed, "template"))
        schedule = self.schedule() if self.timesteps else None
        return [self._draw(template, k, ids, schedule) for k in range(len(self))]

    def _draw(self, template: Draw, k: int, ids: Sequence[str], schedule: torch.Tensor | None) -> Draw:
        timesteps, noise = template.timesteps, template.noise
        if timesteps is not None and schedule is not None:
            timesteps = torch.full_like(timesteps, int(schedule[k]))
        if noise is not None:
            rows = [
                torch.randn(noise.shape[1:], generator=seeded_generator(self.seed, i, k), device="cpu") for i in ids
            ]
            noise = torch.stack(rows).to(noise)
        return Draw(timesteps, noise)

    def pin(self, k: int, ids: Sequence[str]) -> None:
        """Seed the global random state for draw ``k`` of a batch, for modules that draw from it."""
        torch.manual_seed(derive_seed(self.seed, "pinned", k, *ids))
