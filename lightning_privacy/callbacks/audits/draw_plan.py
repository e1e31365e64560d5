"""The fixed (timestep, noise) draws on which every record is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_privacy.core.randomness import derive_seed, seeded_generator
from lightning_privacy.errors import InputError
from lightning_privacy.protocols import Draw

__all__ = ["DrawPlan", "draws_itself", "schedule_length"]

COUNT = 10  # chosen here: ten timesteps, evenly over the schedule without its ends (50, 150, ... 950 of 1000)


def draws_itself(module: Any) -> bool:
    """Return whether a module draws from the global random state, where it must be pinned, and not by `sample_draw`."""
    return not callable(getattr(module, "sample_draw", None))


def schedule_length(module: Any) -> int | None:
    """Return a module's number of diffusion steps, where it tells; None where it does not."""
    alphas = getattr(module, "alphas_cumprod", None)
    if isinstance(alphas, torch.Tensor):
        return len(alphas)
    config = getattr(getattr(module, "scheduler", None), "config", None)
    return getattr(config, "num_train_timesteps", None)


@dataclass(frozen=True)
class DrawPlan:
    """Timesteps shared by all records, and noise that is a function of (seed, record, draw) alone.

    Batch size, order, rank count and the model's state change nothing in it, so that runs and epochs are compared on
    the same draws.

    Args:
        timesteps: Diffusion steps; None for ten over the module's schedule, which `fit_to` finds.
        per_timestep: Noises at each.
        seed: Of the noise.
    """

    timesteps: tuple[int, ...] | None = None
    per_timestep: int = 2
    seed: int = 0

    @classmethod
    def of(cls, timesteps: Sequence[int] | None, draws: int, seed: int) -> "DrawPlan":
        """Return a plan from an audit's arguments."""
        return cls(None if timesteps is None else tuple(timesteps), draws, seed)

    def __len__(self) -> int:
        return max(1, COUNT if self.timesteps is None else len(self.timesteps)) * self.per_timestep

    def schedule(self) -> Int[Tensor, " draws"] | None:
        """Return the timestep of each draw, None where there are none."""
        return torch.tensor(self.timesteps).repeat_interleave(self.per_timestep) if self.timesteps else None

    def fit_to(self, module: Any, batch: Any) -> "DrawPlan":
        """Return the plan for a module: its timesteps, or none where it has none; one draw where nothing is random.

        Args:
            module: A module; without `sample_draw` it is taken to draw from the global random state.
            batch: Any batch.

        Raises:
            InputError: a timestep lies outside the module's schedule.
        """
        if draws_itself(module):
            return self
        template = module.sample_draw(batch, seeded_generator(self.seed, "template"))
        if template.timesteps is None:
            return replace(self, timesteps=(), per_timestep=1 if template.noise is None else self.per_timestep)
        length = schedule_length(module)
        if self.timesteps is None:
            return replace(self, timesteps=_spread(module, batch, length))
        if min(self.timesteps) < 0 or (length is not None and max(self.timesteps) >= length):
            raise InputError(
                f"The audit's timesteps {list(self.timesteps)} leave the schedule of {type(module).__name__}, which "
                f"has {length or 'only non-negative'} steps; give others, or none for ten of its own."
            )
        return self

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
        schedule = self.schedule()
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


def _spread(module: Any, batch: Any, length: int | None) -> tuple[int, ...]:
    places = [(i + 0.5) / COUNT for i in range(COUNT)]
    if length is not None:
        return tuple(int(place * length) for place in places)
    # A module that does not tell is asked often enough to know the range of what it draws.
    asked = [module.sample_draw(batch, seeded_generator("range", i)).timesteps.flatten().cpu() for i in range(64)]
    return tuple(dict.fromkeys(torch.cat(asked).double().quantile(torch.tensor(places).double()).int().tolist()))
