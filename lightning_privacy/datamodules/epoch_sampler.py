"""The order in which members are trained on: a function of (seed, epoch), the same for one process and for many."""

from collections.abc import Iterator
from itertools import cycle, islice
from math import ceil
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.datamodules.pool import EpochIndex
from lightning_privacy.errors import SplitError

__all__ = ["EpochSampler"]


class EpochSampler(DistributedSampler[int]):
    """Draws each record once an epoch; rank ``r`` of ``w`` takes the ``r``-th slice of each global batch.

    So one process with batch 8 trains on the same global batches as two with batch 4. It is a `DistributedSampler`
    because Lightning leaves those as they are. Without ``drop_last`` an incomplete last batch is filled up with the
    epoch's first records until every rank has equally many.

    Args:
        size: Records to draw from.
        batch_size: Records a batch and process.
        shuffle: Permute the records anew in each epoch.
        drop_last: Drop an incomplete last global batch.
        seed: The order is a function of this and the epoch.
        rank: This process.
        world_size: Number of processes.

    Raises:
        SplitError: Not one batch can be made.

    Example:
        >>> EpochSampler(5, batch_size=2, shuffle=False).batch(epoch=0, batch_idx=2)
        [4]
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        records: Any = range(size)  # only its length is used
        super().__init__(records, world_size, rank, shuffle=shuffle, seed=seed, drop_last=drop_last)
        self.size, self.batch_size, self.world_size = size, batch_size, world_size
        self.global_batch = batch_size * world_size
        self.n_batches = size // self.global_batch if drop_last else ceil(size / self.global_batch)
        self.start = 0
        """First batch of this epoch to draw; above 0 only after resuming in the middle of one."""
        self._order: tuple[int, list[int]] = (-1, [])
        if self.n_batches == 0:
            raise SplitError(
                f"{size} training records make no batch of {batch_size} on {world_size} process(es) with drop_last: "
                "lower the batch size, set drop_last=False or train on more records."
            )

    def order(self, epoch: int) -> list[int]:
        """Return the positions of all records in the order of an epoch."""
        if not self.shuffle:
            return list(range(self.size))
        if self._order[0] != epoch:
            generator = seeded_generator("epoch order", self.seed, epoch)
            self._order = epoch, torch.randperm(self.size, generator=generator).tolist()
        return self._order[1]

    def batch(self, epoch: int, batch_idx: int) -> list[int]:
        """Return the positions in one batch of this rank.

        Raises:
            IndexError: The epoch has no such batch.
        """
        if not 0 <= batch_idx < self.n_batches:
            raise IndexError(f"An epoch has {self.n_batches} batches; there is no batch {batch_idx}.")
        order = self.order(epoch)
        chunk = order[batch_idx * self.global_batch : (batch_idx + 1) * self.global_batch]
        each = ceil(len(chunk) / self.world_size)
        chunk = chunk + list(islice(cycle(order), each * self.world_size - len(chunk)))
        return chunk[self.rank * each : (self.rank + 1) * each]

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of this rank, from `start` on; each knows its epoch."""
        epoch = self.epoch
        for batch_idx in range(self.start, self.n_batches):
            for position in self.batch(epoch, batch_idx):
                yield EpochIndex(position, epoch)

    def __len__(self) -> int:
        """Return the records a rank draws in a whole epoch, also where this epoch was entered in the middle."""
        return (self.n_batches - 1) * self.batch_size + len(self.batch(self.epoch, self.n_batches - 1))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a position loaded from a checkpoint holds for its own epoch only."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def state_dict(self, epoch: int, consumed: int, limit: int | float | None = None) -> dict[str, int]:
        """Return the position after some batches of an epoch.

        Args:
            epoch: The epoch.
            consumed: Batches that training has finished, not what workers fetched ahead.
            limit: Batches that make an epoch where the trainer limits them.

        Returns:
            Plain integers, the same on every rank.
        """
        over = consumed >= min(self.n_batches, self.n_batches if limit is None else limit)
        return {
            "epoch": epoch + 1 if over else epoch,
            "seen": 0 if over else consumed * self.global_batch,
            "global_batch": self.global_batch,
            "size": self.size,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; another number of processes will do if the global batch is the same.

        Raises:
            SplitError: The order or the batches differ from those that were saved.
        """
        mine = {"size": self.size, "seed": self.seed}
        # Between epochs any batch size can take over.
        if state["seen"]:
            mine["global_batch"] = self.global_batch
        if wrong := {key: (state[key], value) for key, value in mine.items() if state[key] != value}:
            what = ", ".join(f"{key} {old} in the checkpoint, {new} now" for key, (old, new) in wrong.items())
            raise SplitError(
                f"The checkpoint's place in the training order is not one of this run's ({what}). Resume with the same "
                "data, seed and global batch (batch size times processes), or from a checkpoint saved at the end of an "
                "epoch."
            )
        self.epoch, self.start = state["epoch"], state["seen"] // self.global_batch
