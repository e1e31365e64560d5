"""The training batches of several shadow models at once, from records that are held in memory."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_privacy.datamodules.pool import EpochIndex, innermost
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.shadows.refusals import CannotStack
from lightning_privacy.shadows.shadow_split import ShadowSplit

__all__ = ["StackedBatches", "only_tensors", "refill", "tensors_of"]

MEMORY = 4 << 30  # bytes of records held, chosen here: half of a small laptop's memory
PROBED = 8  # records that are read twice, chosen here


def tensors_of(nest: Any) -> list[Tensor]:
    """Return the tensors in a batch, in order.

    Example:
        >>> [t.tolist() for t in tensors_of({"image": torch.zeros(1), "caption": ["a"], "label": torch.ones(1)})]
        [[0.0], [1.0]]
    """
    if isinstance(nest, Tensor):
        return [nest]
    parts = nest.values() if isinstance(nest, Mapping) else nest if isinstance(nest, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def only_tensors(nest: Any) -> Any:
    """Return a batch without its texts and numbers, which cannot be stacked: absent in mappings, None in sequences."""
    if isinstance(nest, Tensor):
        return nest
    if isinstance(nest, Mapping):
        return {key: only_tensors(part) for key, part in nest.items() if tensors_of(part)}
    if isinstance(nest, list | tuple) and tensors_of(nest):
        return tuple(only_tensors(part) for part in nest)
    return None


def refill(nest: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a batch of the same form with other tensors, taken in the order of `tensors_of`."""
    if isinstance(nest, Tensor):
        return next(tensors)
    if isinstance(nest, Mapping):
        return {key: refill(part, tensors) for key, part in nest.items()}
    return tuple(refill(part, tensors) for part in nest) if isinstance(nest, list | tuple) else None


class StackedBatches:
    """Exactly the batches that each shadow's own loader would make, in the same order, for all of them together.

    Args:
        splits: One a shadow model; they share the dataset and its settings.
        device: Where the records are held.
        module: Whose ``on_before_batch_transfer`` looks at every batch, unless the datamodule has one.

    Raises:
        CannotStack: the records do not fit, change from one read to the next, or are not joined row by row.
    """

    def __init__(self, splits: Sequence[ShadowSplit], device: torch.device, module: L.LightningModule) -> None:
        self.members = [split.indices("member") for split in splits]
        self.samplers = [split._new_sampler(0, 1) for split in splits]
        every = sorted({index for members in self.members for index in members})
        self.row_of = {index: row for row, index in enumerate(every)}
        self.device, self.collate = device, splits[0].pool.options["collate_fn"]
        self.reader = splits[0].read(every)
        self.keyed = any(getattr(innermost(self.reader.dataset, index)[0], "keyed_by_epoch", False) for index in every)
        self.owner = splits[0] if is_overridden("on_before_batch_transfer", splits[0]) else module
        self._held: tuple[int, Any, list[Tensor]] = (-1, None, [])
        self._check()

    def _items(self, rows: Sequence[int], epoch: int, state: int = 0) -> list[Any]:
        with own_random_state("stacked records", state):
            return [self.reader[EpochIndex(row, epoch)] for row in rows]

    def _check(self) -> None:
        some = range(min(PROBED, len(self.reader)))
        first, second = (self.collate(self._items(some, 0, state)) for state in (0, 1))
        pairs = list(zip(tensors_of(first), tensors_of(second), strict=True))
        if not all(torch.equal(one, other) for one, other in pairs):
            raise CannotStack("the dataset augments at random, not keyed by epoch and record")
        if any(tensor.ndim == 0 or len(tensor) != len(some) for tensor, _ in pairs):
            raise CannotStack("the collate function does not make one row a record")
        single = self.collate(self._items(some[-1:], 0))
        same = [one.shape[1:] == two.shape[1:] for (one, _), two in zip(pairs, tensors_of(single), strict=True)]
        if not all(same) or not all(
            torch.equal(one[-1:], two) for (one, _), two in zip(pairs, tensors_of(single), strict=True)
        ):
            raise CannotStack("the collate function makes a record's row depend on the other records of the batch")
        needed = sum(tensor.nbytes for tensor, _ in pairs) * len(self.reader) // len(some)
        if needed > MEMORY:
            raise CannotStack(f"the records take {needed / 2**30:.1f} GiB of memory, more than {MEMORY / 2**30:.0f}")

    def _records(self, epoch: int) -> tuple[Any, list[Tensor]]:
        """Return the form of a batch, and the tensors of all records in the augmentation of an epoch."""
        held = epoch if self.keyed else 0
        if self._held[0] != held:
            joined = self.collate(self._items(range(len(self.reader)), held))
            looked_at = tensors_of(self.owner.on_before_batch_transfer(joined, 0))
            if not all(map(operator.is_, looked_at, tensors_of(joined))):
                raise CannotStack(f"{type(self.owner).__name__}.on_before_batch_transfer makes other batches")
            whole = only_tensors(joined)
            self._held = held, whole, [tensor.to(self.device) for tensor in tensors_of(whole)]
        return self._held[1], self._held[2]

    @property
    def n_batches(self) -> int:
        """Batches an epoch, the same for all shadows that are trained together."""
        return self.samplers[0].n_batches

    def batch(self, epoch: int, batch_idx: int) -> list[tuple[list[int], Any, list[Tensor]]]:
        """Return one batch of every shadow: for each size of batch the shadows that have it, the form, the tensors.

        Args:
            epoch: From 0.
            batch_idx: In the epoch.

        Returns:
            Positions of the shadows among the splits; a batch whose tensors are placeholders; tensors of shape
            (shadows, records, ...).
        """
        form, tensors = self._records(epoch)
        by_size: dict[int, tuple[list[int], list[list[int]]]] = {}
        for shadow, (sampler, members) in enumerate(zip(self.samplers, self.members, strict=True)):
            rows = [self.row_of[members[position]] for position in sampler.batch(epoch, batch_idx)]
            shadows, all_rows = by_size.setdefault(len(rows), ([], []))
            shadows.append(shadow)
            all_rows.append(rows)
        chosen = []
        for shadows, all_rows in by_size.values():
            index = torch.tensor(all_rows, device=self.device)
            chosen.append((shadows, form, [tensor[index] for tensor in tensors]))
        return chosen
