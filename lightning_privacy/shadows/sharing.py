"""Dividing the shadow models among ranks that otherwise work alone, and waiting until all are done."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lightning_privacy.core.ranks import world_size
from lightning_privacy.errors import InputError, PrivacyError

__all__ = ["resolve_share", "wait_for_all"]

# A rank whose files are all there waits for one that trains its whole share; the usual half an hour would end the job.
PATIENCE = timedelta(days=7)


def resolve_share(share: tuple[int, int] | None) -> tuple[int, int]:
    """Return (i, n): the shadow models k with k % n == i are this process's.

    Args:
        share: As given; None for this rank's part of the process group, or everything where there is none.

    Raises:
        InputError: i is not one of 0 to n - 1.

    Example:
        >>> resolve_share(None), resolve_share((1, 4))
        ((0, 1), (1, 4))
    """
    if share is None:
        return (dist.get_rank(), dist.get_world_size()) if world_size() > 1 else (0, 1)
    part, parts = share
    if not 0 <= part < parts:
        raise InputError(f"share=({part}, {parts}) names no part: give (i, n) with i from 0 to n - 1.")
    return part, parts


def wait_for_all(failure: BaseException | None) -> None:
    """Wait until every rank has come here, and raise on all of them if one failed; do nothing in a single process.

    Args:
        failure: What this rank failed with; it is raised here again.

    Raises:
        PrivacyError: another rank failed.
    """
    outcomes: list[Any] = [None]
    if world_size() > 1:
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        outcomes = [None] * world_size()
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        dist.all_gather_object(outcomes, told, group=group)  # pyright: ignore[reportArgumentType]  all ranks are in it
        dist.destroy_process_group(group)
    if failure is not None:
        raise failure
    for rank, told in enumerate(outcomes):
        if told is not None:
            raise PrivacyError(f"Rank {rank} could not do its share of the shadow models. {told}")
