"""Reading `Signals`: what an attack needs must be there, and records can be taken out."""

from dataclasses import fields, replace

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = ["observed", "take", "timestep_ranges"]

_PER_DRAW = {"timesteps"}


def observed(signals: Signals, field: str, attack: str) -> Tensor:
    """Return one field of the signals.

    Args:
        signals: What was observed.
        field: Name of the field.
        attack: Who asks, for the error.

    Raises:
        InputError: the field was not observed.
    """
    value = getattr(signals, field)
    if value is None:
        raise InputError(
            f"The attack `{attack}` reads `{field}`, which was not observed on this model; compute the signals with "
            f"requires={{'{field}'}}, or leave the attack out."
        )
    return value


def take(signals: Signals, index: Int[Tensor, " n"]) -> Signals:
    """Return the signals of some of the records, in the order of ``index``."""
    changed: dict[str, object] = {"record_ids": tuple(signals.record_ids[int(i)] for i in index)}
    for field in fields(signals):
        value = getattr(signals, field.name)
        if isinstance(value, torch.Tensor) and field.name not in _PER_DRAW:
            changed[field.name] = value[index]
    return replace(signals, **changed)  # pyright: ignore[reportArgumentType]


def timestep_ranges(timesteps: Int[Tensor, " draws"] | None, ranges: int) -> list[Int[Tensor, " n"]]:
    """Return the draws of each range of timesteps, ranges of about equally many distinct timesteps; none if all are alike.

    Args:
        timesteps: Timestep of each draw; None for a model without timesteps.
        ranges: At most so many.

    Example:
        >>> [part.tolist() for part in timestep_ranges(torch.tensor([50, 50, 950, 500]), 3)]
        [[0, 1], [3], [2]]
    """
    if timesteps is None:
        return []
    distinct = timesteps.unique()
    parts = distinct.tensor_split(min(ranges, len(distinct)))
    return [torch.isin(timesteps, part).nonzero().squeeze(1) for part in parts] if len(parts) > 1 else []
