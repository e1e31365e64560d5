"""The pool that a split divides: the inner datamodule's training dataset, and how its loader makes batches of it."""

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from lightning_privacy.errors import SplitError

__all__ = ["EpochIndex", "Pool", "innermost", "open_pool", "read_record"]


class EpochIndex(int):
    """An index that knows its epoch, so that augmentation can be a function of (seed, epoch, record) in any worker.

    Args:
        value: The index.
        epoch: The epoch (or pass) in which the record is read.
    """

    epoch: int

    def __new__(cls, value: int, epoch: int = 0) -> "EpochIndex":
        """Make an int with an epoch."""
        self = super().__new__(cls, value)
        self.epoch = epoch
        return self


def innermost(dataset: Any, index: int) -> tuple[Any, int]:
    """Follow `Subset` and `ConcatDataset` to the dataset that owns a record, and its index there."""
    while True:
        if type(dataset) is Subset:
            dataset, index = dataset.dataset, dataset.indices[index]
        elif type(dataset) is ConcatDataset:
            part = next(k for k, end in enumerate(dataset.cumulative_sizes) if index < end)
            index -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
        else:
            return dataset, index


def read_record(dataset: Any, index: int, epoch: int | None = None) -> Any:
    """Read one item; datasets with ``keyed_by_epoch = True`` are told the epoch, all others get a plain index.

    Args:
        dataset: The pool.
        index: Index in the pool.
        epoch: Epoch for keyed augmentation; None reads the raw record.
    """
    if epoch is not None:
        base, place = innermost(dataset, index)
        if getattr(base, "keyed_by_epoch", False):
            return base[EpochIndex(place, epoch)]
    return dataset[index]


@dataclass(frozen=True)
class Pool:
    """A map-style dataset and its loader's settings.

    Args:
        dataset: All records.
        batch_size: Records a batch and process.
        shuffle: Whether the inner loader shuffles.
        drop_last: Whether an incomplete last batch is dropped.
        options: Further arguments of `DataLoader` (collate_fn, num_workers, ...).
    """

    dataset: Any
    batch_size: int
    shuffle: bool
    drop_last: bool
    options: dict[str, Any]


def _shuffles(loader: DataLoader[Any], name: str) -> bool:
    sampler = loader.sampler
    if isinstance(sampler, DistributedSampler):
        return bool(sampler.shuffle)
    if type(sampler) in (RandomSampler, SequentialSampler):
        return isinstance(sampler, RandomSampler)
    raise SplitError(
        f"{name} draws its records with a {type(sampler).__name__}; MembershipSplit draws members itself and cannot "
        "keep another sampler. Pass `shuffle=True` to draw members uniformly without replacement, or `shuffle=False` "
        "for a fixed order."
    )


def open_pool(inner: L.LightningDataModule, shuffle: bool | None = None) -> Pool:
    """Take the pool from a datamodule that is set up.

    Args:
        inner: The user's datamodule.
        shuffle: Overrides the inner loader's order; None keeps it.

    Returns:
        The pool.

    Raises:
        SplitError: The training loader is not one map-style `DataLoader` with a length and automatic batching.
    """
    name = f"{type(inner).__name__}.train_dataloader()"
    loader = inner.train_dataloader()
    if not isinstance(loader, DataLoader):
        raise SplitError(
            f"{name} returned a {type(loader).__name__}; MembershipSplit divides the dataset of exactly one "
            "`DataLoader`. Return one loader over one map-style dataset (join several with "
            "torch.utils.data.ConcatDataset)."
        )
    dataset = loader.dataset
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise SplitError(
            f"{name} reads an IterableDataset ({kind}): its records have no index, so nobody can say which were "
            "trained on. Use a map-style dataset with `__len__` and `__getitem__`."
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise SplitError(
            f"{name} reads a {kind} without `__len__` and `__getitem__`; MembershipSplit needs a map-style dataset."
        )
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        raise SplitError(
            f"{name} makes its batches with a {type(loader.batch_sampler).__name__}; MembershipSplit needs automatic "
            "batching. Give the loader a `batch_size` instead of a `batch_sampler`."
        )
    keep = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context"]
    if loader.num_workers > 0:
        keep += ["prefetch_factor", "persistent_workers"]
    return Pool(
        dataset=dataset,
        batch_size=loader.batch_size,
        shuffle=_shuffles(loader, name) if shuffle is None else shuffle,
        drop_last=bool(loader.drop_last),
        # `in_order=False` is left behind on purpose: who is in batch k must be known.
        options={key: getattr(loader, key) for key in keep},
    )
