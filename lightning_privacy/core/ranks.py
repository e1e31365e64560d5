"""Collectives on tensors that do nothing in a single process."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

__all__ = ["alone", "gather_rows", "mean_over_ranks", "world_size"]

_ALONE: ContextVar[bool] = ContextVar("lightning_privacy_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Work as a single process inside a process group: `world_size` is 1 and the collectives here do nothing.

    For what one rank does by itself, such as training its share of the shadow models, while others do something else.

    Example:
        >>> with alone():
        ...     world_size()
        1
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def world_size() -> int:
    """Return how many ranks train together; 1 inside `alone`."""
    if _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def mean_over_ranks(value: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """Return the detached mean over ranks."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


def gather_rows(rows: Float[Tensor, "n features"]) -> Float[Tensor, "total features"]:
    """Return the rows of all ranks, in rank order; ranks may hold different numbers of rows."""
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(int(c) for c in counts))
    padded = rows.new_zeros(longest, rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])
