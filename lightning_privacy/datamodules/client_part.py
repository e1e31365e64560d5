"""One client's share of another datamodule's records, for federations that are tried out on one machine."""

import hashlib
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Subset

from lightning_privacy.datamodules.membership_split import TRANSFER_HOOKS
from lightning_privacy.datamodules.pool import open_pool
from lightning_privacy.errors import InputError

__all__ = ["ClientPart", "part_of"]


def part_of(records: int, part: int, parts: int, seed: int) -> list[int]:
    """Return the indices of one of several equal, disjoint shares, drawn without regard to what the records are.

    Args:
        records: How many there are.
        part: Which share, from 0.
        parts: How many shares.
        seed: Of the draw.

    Example:
        >>> shares = [part_of(7, part, 3, seed=0) for part in range(3)]
        >>> [len(share) for share in shares], sorted(sum(shares, []))
        ([3, 2, 2], [0, 1, 2, 3, 4, 5, 6])
    """
    order = sorted(range(records), key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())
    return sorted(order[part::parts])


class ClientPart(L.LightningDataModule):
    """Gives one of several clients its own share of another datamodule's records; the shares are disjoint.

    It goes inside a `MembershipSplit`, so that every client has members, validation and hold-out of its own. Shares are
    equal and drawn by a seed (independent and identically distributed): real clients differ more than these.

    Args:
        inner: The datamodule with all clients' records.
        part: Number of this client, from 0.
        parts: Number of clients.
        seed: Of the shares; the same for all clients.

    Raises:
        InputError: There is no such part, or at set-up there are fewer records than clients.

    Example:
        >>> from lightning_privacy.testing.toy_data import ToyImages
        >>> data = ClientPart(ToyImages(n=10), part=0, parts=3)
        >>> data.setup("fit")
        >>> len(data.train_dataloader().dataset)
        4
    """

    def __init__(self, inner: L.LightningDataModule, part: int, parts: int, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= part < parts:
            raise InputError(f"ClientPart: `part` is {part} of `parts` {parts}; parts are numbered from 0.")
        self.inner, self.part, self.parts, self.seed = inner, part, parts, seed
        for hook in TRANSFER_HOOKS:
            # Bound only where the inner one has them, or Lightning would take the default before the module's own.
            if is_overridden(hook, inner):
                setattr(self, hook, getattr(inner, hook))
        if is_overridden("val_dataloader", inner):
            self.val_dataloader = self._val_dataloader

    def prepare_data(self) -> None:
        """Let the inner datamodule prepare its files."""
        self.inner.prepare_data()

    def setup(self, stage: str) -> None:
        """Set the inner datamodule up."""
        self.inner.trainer = self.trainer
        self.inner.setup(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this client's training records, in batches as the inner datamodule makes them."""
        pool = open_pool(self.inner)
        share = self._share(pool.dataset, "training")
        # A plain Subset: a split around this one finds the records' own identities through it.
        return DataLoader(share, pool.batch_size, shuffle=pool.shuffle, drop_last=pool.drop_last, **pool.options)

    def _val_dataloader(self) -> DataLoader[Any]:
        loader = self.inner.val_dataloader()
        if not isinstance(loader, DataLoader):
            raise InputError(
                f"{type(self.inner).__name__}.val_dataloader() returned a {type(loader).__name__}, of which no client can "
                "be given a share. Return one DataLoader."
            )
        share = self._share(loader.dataset, "validation")
        return DataLoader(share, loader.batch_size, collate_fn=loader.collate_fn, num_workers=loader.num_workers)

    def _share(self, dataset: Any, what: str) -> Subset[Any]:
        if len(dataset) < self.parts:
            raise InputError(
                f"{type(self.inner).__name__} has {len(dataset)} {what} records, fewer than the {self.parts} clients: some "
                "would have none. Take fewer clients, or more records."
            )
        return Subset(dataset, part_of(len(dataset), self.part, self.parts, self.seed))

    def teardown(self, stage: str) -> None:
        """Let the inner datamodule clean up."""
        self.inner.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Tell the inner datamodule."""
        self.inner.on_exception(exception)
