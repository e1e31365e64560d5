"""What the data of a pool of shadow models are: every record, and the settings under which records are read."""

import os
from collections.abc import Mapping
from hashlib import sha256
from inspect import signature
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset

from lightning_privacy.datamodules.identity import ITEM_DIGEST, item_digest
from lightning_privacy.datamodules.pool import EpochIndex, innermost
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.errors import InputError
from lightning_privacy.shadows.canonical import canonical, digest
from lightning_privacy.shadows.shadow_split import Records, ShadowSplit
from lightning_privacy.shadows.sources import class_sources, path_of
from lightning_privacy.shadows.steady import steady

__all__ = ["NO_MATTER", "batches_digest", "reading_settings", "records_digest"]

# Where data lie and how they are fetched: the records themselves stand in the key instead.
NO_MATTER = frozenset(
    {
        *("root", "num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "prepare_data_per_node"),
        *("training", "allow_zero_length_dataloader_with_multiple_devices"),
    }
)
PROBED = 4  # records that are read twice, and whose batch is part of the key; chosen here
LONG = 100  # entries of what is a setting, chosen here; longer attributes of a dataset are its records
_OF_LIGHTNING = frozenset({*vars(L.LightningDataModule()), "_hparams_initial", "_hparams_name"})


def records_digest(records: Records) -> str:
    """Return the digest of every record that has a role, labels and captions included, in the dataset's order.

    A dataset whose ``record_id`` and ``metadata`` tell what an item is made of is asked for these; any other is read,
    once. Where two reads under the same random state differ, pictures are left to their identities.

    Args:
        records: The target's records.
    """
    split, dataset = records.split, records.split.pool.dataset
    indices = sorted({index for role in split.roles.values() for index in role} | set(records.indices))
    if split._identity == ITEM_DIGEST:
        return item_digest([split.record_ids[index] for index in indices])
    with own_random_state("shadow records"):
        first = [_told(dataset, index) for index in indices[:PROBED]]
    with own_random_state("shadow records"):
        repeats = first == [_told(dataset, index) for index in indices[:PROBED]]
    every = sha256()
    with own_random_state("shadow records"):
        for index in indices:
            every.update(f"{split.record_ids[index]} {_told(dataset, index, whole=repeats)}\n".encode())
    return every.hexdigest()


def _told(dataset: Any, index: int, whole: bool = True) -> str:
    base, place = innermost(dataset, index)
    described = callable(getattr(base, "metadata", None))
    return item_digest(_readable(base.metadata(place) if described else dataset[index], whole))


def _readable(item: Any, whole: bool = True) -> Any:
    """Return an item with a form in place of what has no canonical bytes; not ``whole``: in place of arrays too."""
    if isinstance(item, Mapping):
        return {str(key): _readable(part, whole) for key, part in item.items()}
    if isinstance(item, list | tuple):
        return [_readable(part, whole) for part in item]
    if isinstance(item, Image | torch.Tensor) or (isinstance(item, np.ndarray | np.generic) and item.dtype.kind != "O"):
        return item if whole or _count(item) == 1 else None
    return item if isinstance(item, str | int | float | bytes) else digest(canonical(item, "a record", loose=True))


def _count(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else int(np.prod(np.shape(value)))


def batches_digest(records: Records) -> str:
    """Return the digest of a batch of the first records, raw and as in two epochs: they are read as in training.

    Args:
        records: The target's records.
    """
    split, some = records.split, records.indices[:PROBED]
    reader = ShadowSplit(split, {**split.roles}, records.contents, 0).read(some)
    collate = split.pool.options["collate_fn"]

    def read() -> str:
        with own_random_state("shadow key"):
            raw = [reader[i] for i in range(len(some))]
            augmented = [reader[EpochIndex(i, epoch)] for epoch in (0, 1) for i in range(len(some))]
            return item_digest(_readable([collate(items) for items in (raw, augmented)]))

    first = read()
    return first if first == read() else "<drawn by a generator of the dataset's own>"


def reading_settings(records: Records, loose: bool) -> Any:
    """Return the settings of a datamodule and its dataset, without what reading records changes, such as a cache.

    Args:
        records: The target's records.
        loose: See `canonical`.

    Raises:
        InputError: a constructor's argument has no canonical form.
    """
    split = records.split

    def settings() -> Any:
        met: set[int] = set()
        return [_settings(split.inner, loose, met), _settings(split.pool.dataset, loose, met)]

    before = settings()
    batches_digest(records)
    return steady(before, settings())


def _settings(thing: Any, loose: bool, met: set[int]) -> Any:
    """Return the constructor's arguments where they were kept, and what else is short enough to be a setting."""
    met.add(id(thing))
    state = {name: value for name, value in vars(thing).items() if name not in _OF_LIGHTNING}
    hparams = dict(state.pop("_hparams", {}))
    given = {name for name in signature(type(thing).__init__).parameters if name in state} | set(hparams)
    found: dict[str, Any] = {}
    for name, value in {**hparams, **state}.items():
        if name in NO_MATTER or value is None or id(value) in met or isinstance(value, DataLoader | Sampler):
            continue
        where = f"{type(thing).__name__}.{name}"
        if isinstance(value, Dataset | L.LightningDataModule):
            found[name] = _settings(value, loose, met)
        elif isinstance(thing, ConcatDataset) and name == "datasets":
            found[name] = [_settings(each, loose, met) for each in value]
        elif _is_data(value) or (type(thing) is Subset and name == "indices"):
            continue
        elif name in given:
            found[name] = canonical(value, where, loose)
        elif not _is_place(value):
            try:
                found[name] = canonical(value, where)
            except InputError:  # a file that was opened, a lock: no setting, and another process may not have it yet
                continue
    return [path_of(type(thing)), class_sources([type(thing)]), found]


def _is_data(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray):
        return _count(value) > LONG
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        parts = value.values() if isinstance(value, Mapping) else value
        # What is kept by number instead of by name are records, such as those that were read before.
        by_number = isinstance(value, Mapping) and not all(isinstance(key, str) for key in value)
        return by_number or len(value) > LONG or any(_is_data(part) for part in parts)
    return isinstance(value, Image)


def _is_place(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return any(_is_place(part) for part in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, os.PathLike) or (isinstance(value, str) and os.sep in value)
