"""Looking at a model without leaving a trace, on any number of ranks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_privacy.core.ranks import world_size

__all__ = ["gather_parts", "on_device", "on_rank_zero", "precision_of", "rank", "untouched"]

T = TypeVar("T")


@contextmanager
def untouched(module: L.LightningModule) -> Iterator[None]:
    """Evaluate a module: evaluation mode, no gradients, the trainer's precision; mode and random state come back.

    Modes are restored submodule by submodule, because a frozen part may rightly stand in another mode than the whole.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        with isolate_rng(), torch.no_grad(), precision_of(module):
            module.eval()
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def precision_of(module: L.LightningModule) -> AbstractContextManager[Any]:
    """Return the precision context of the module's trainer; nothing without a trainer."""
    trainer = _trainer(module)
    return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()


def _trainer(module: L.LightningModule) -> L.Trainer | None:
    # `module.trainer` raises where there is none.
    return getattr(module, "_trainer", None)


def on_device(module: L.LightningModule, batch: Any) -> Any:
    """Return a batch on the module's device, by the user's transfer hooks where a trainer is attached."""
    trainer = _trainer(module)
    if trainer is None or trainer.strategy.lightning_module is None:
        return move_data_to_device(batch, module.device)
    return trainer.strategy.batch_to_device(batch)


def rank() -> int:
    """Return this process's rank, 0 where there is one process."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_parts(parts: dict[int, T]) -> list[T]:
    """Return every rank's numbered parts in order of their numbers, on every rank."""
    if world_size() == 1:
        return [parts[i] for i in sorted(parts)]
    gathered: list[dict[int, T] | None] = [None] * world_size()
    dist.all_gather_object(gathered, parts)
    merged = {number: part for some in gathered if some is not None for number, part in some.items()}
    return [merged[i] for i in sorted(merged)]


def on_rank_zero(function: Callable[[], T]) -> T:
    """Run a function on rank zero and return its value, or raise its error, on every rank."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:  # the other ranks must not wait for a value that never comes
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
