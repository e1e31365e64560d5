"""Records of one role: as a dataset, and as an endless stream that defences pull beside the training batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.datamodules.pool import read_record
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.errors import SplitError

__all__ = ["RoleBatch", "RoleStream", "RoleSubset"]


class RoleSubset(Dataset[Any]):
    """The records of one role, and nothing else: whatever sampler reads it, no other record comes out.

    Args:
        dataset: The pool.
        indices: Dataset indices of the role.
        check: Function (index, epoch, item) that raises where an item is not the record it was at set-up.
    """

    def __init__(self, dataset: Any, indices: Sequence[int], check: Callable[[int, int, Any], None]) -> None:
        self.dataset, self.indices, self.check = dataset, list(indices), check

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        """Return one item; a position that knows its epoch is augmented, a plain one is raw."""
        index, epoch = self.indices[position], getattr(position, "epoch", None)
        item = read_record(self.dataset, index, epoch)
        self.check(index, epoch or 0, item)
        return item


@dataclass(frozen=True)
class RoleBatch:
    """A batch of a stream.

    Args:
        batch: What the inner datamodule's collate function made of the records.
        indices: Their dataset indices.
        passes: How often each was read before.
        place: Records that all processes read before this batch; with ``repeat``, since the sequence began again.
    """

    batch: Any
    indices: list[int]
    passes: list[int]
    place: int


class RoleStream(Iterator[RoleBatch]):
    """Endless batches of one role, each record once a pass; it never touches the global random state.

    Rank ``r`` of ``w`` takes the ``r``-th slice of each global batch, so that one process with batch 8 reads the same
    records as two with batch 4. A batch may reach from one pass into the next.

    Args:
        records: The role's records.
        collate_fn: The inner datamodule's collate function.
        batch_size: Records a batch and process.
        seed: The order is a function of this, ``name`` and the pass.
        name: The role.
        rank: This process.
        world_size: Number of processes.
        repeat: Passes after which the same batches come again, in the same order; 0 for an order of its own each pass.

    Raises:
        SplitError: The role is empty.
    """

    def __init__(
        self,
        records: RoleSubset,
        collate_fn: Callable[[list[Any]], Any],
        batch_size: int,
        seed: int,
        name: str,
        rank: int = 0,
        world_size: int = 1,
        repeat: int = 0,
    ) -> None:
        if not len(records):
            raise SplitError(f"There is no stream of `{name}`: no record has this role. Raise its fraction.")
        self.records, self.collate_fn, self.name = records, collate_fn, name
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.position, self.repeat = 0, repeat
        self._pass: tuple[int, list[int]] = (-1, [])

    def _place(self, place: int) -> tuple[int, int]:
        """Return pass and dataset index of the ``place``-th record of the endless sequence."""
        number, offset = divmod(place, len(self.records))
        if self._pass[0] != number:
            generator = seeded_generator("stream order", self.seed, self.name, number)
            self._pass = number, torch.randperm(len(self.records), generator=generator).tolist()
        return number, self.records.indices[self._pass[1][offset]]

    def peek(self) -> list[int]:
        """Return the dataset indices of the next batch without reading it."""
        first = self.position + self.rank * self.batch_size
        return [self._place(place)[1] for place in range(first, first + self.batch_size)]

    def __next__(self) -> RoleBatch:
        """Read the next batch."""
        place = self.position
        first = self.position + self.rank * self.batch_size
        places = [self._place(each) for each in range(first, first + self.batch_size)]
        with own_random_state("stream items", self.seed, self.name, first):
            items = []
            for number, index in places:
                item = read_record(self.records.dataset, index, number)
                self.records.check(index, number, item)
                items.append(item)
            batch = self.collate_fn(items)
        self.position += self.batch_size * self.world_size
        if self.repeat and self.position >= self.repeat * len(self.records):
            self.position = 0
        return RoleBatch(batch, [index for _, index in places], [number for number, _ in places], place)

    def state_dict(self) -> dict[str, int]:
        """Return the position (records read by all processes together) as plain integers, the same on every rank."""
        return {"position": self.position, "seed": self.seed, "size": len(self.records)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved position.

        Raises:
            SplitError: The position belongs to another seed or another set of records.
        """
        if (state["seed"], state["size"]) != (self.seed, len(self.records)):
            raise SplitError(
                f"The saved position of the `{self.name}` stream belongs to seed {state['seed']} and {state['size']} "
                f"records; this stream has seed {self.seed} and {len(self.records)} records. Resume with the split and "
                "seed of the checkpoint."
            )
        self.position = state["position"]
