"""The pass that edits what has not been edited before: sharded over ranks, in batches, with a bar."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lightning_privacy.datamodules.locked_pictures import picture_of
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.editors.protocol import KeyedEditor
from lightning_privacy.editors.stored import EditStore, picture_key
from lightning_privacy.errors import InputError

__all__ = ["edit_all"]

UNREADABLE = (OSError, ValueError, SyntaxError, InputError, Image.DecompressionBombError)
SHOWN = 10


def edit_all(
    dataset: Any,
    editors: Mapping[str, KeyedEditor],
    stores: Mapping[str, EditStore],
    *,
    batch_size: int = 16,
    unreadable: Literal["error", "skip"] = "error",
    rank: int = 0,
    world_size: int = 1,
) -> list[int]:
    """Edit every picture of a dataset that is not in its store yet; ranks share the work and wait for each other.

    Args:
        dataset: Raw records.
        editors: By name.
        stores: By the same names.
        batch_size: Pictures at a time.
        unreadable: A record that cannot be read is an ``error``, or left out with a warning (``skip``).
        rank: This process.
        world_size: Number of processes that share the stores.

    Returns:
        Indices of the records that can be read.

    Raises:
        InputError: records cannot be read, each named with its reason.
    """
    with own_random_state("edits"):
        problems = _edit_share(dataset, editors, stores, batch_size, range(rank, len(dataset), world_size), rank)
    problems = _everybodys(problems, world_size)
    if problems:
        listed = "".join(f"\n  record {i}: {why}" for i, why in sorted(problems.items())[:SHOWN])
        rest = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        said = f"{len(problems)} of {len(dataset)} records of {type(dataset).__name__} cannot be read:{listed}{rest}\n"
        if unreadable == "error" or len(problems) == len(dataset):
            raise InputError(f"LockedDataModule: {said}Mend or remove them, or set `unreadable: skip`.")
        rank_zero_warn(f"LockedDataModule leaves records out; {said}")
    return [i for i in range(len(dataset)) if i not in problems]


def _edit_share(
    dataset: Any,
    editors: Mapping[str, KeyedEditor],
    stores: Mapping[str, EditStore],
    batch_size: int,
    share: Sequence[int],
    rank: int,
) -> dict[int, str]:
    problems: dict[int, str] = {}
    waiting: dict[str, dict[str, Tensor]] = {name: {} for name in editors}

    def flush(name: str) -> None:
        keys, images = list(waiting[name]), list(waiting[name].values())
        waiting[name] = {}
        if keys:
            for key, edited in zip(keys, editors[name].edit(torch.stack(images)), strict=True):
                stores[name].put(key, edited)

    # said only where it takes long: where all is there, reading is all that is done
    for index in tqdm(share, desc="Editing", unit="picture", delay=5, disable=rank != 0):
        try:
            image = picture_of(dataset[index], dataset, index).detach().float()
        except UNREADABLE as wrong:
            problems[index] = str(wrong).splitlines()[0] if str(wrong) else type(wrong).__name__
            continue
        key = picture_key(image)
        for name, store in stores.items():
            others = waiting[name]
            if key in others or store.has(key, tuple(image.shape)):
                continue
            if others and next(iter(others.values())).shape != image.shape:
                flush(name)
            waiting[name][key] = image
            if len(waiting[name]) >= batch_size:
                flush(name)
    for name in editors:
        flush(name)
    return problems


def _everybodys(problems: dict[int, str], world_size: int) -> dict[int, str]:
    """Return the problems of all ranks; whoever returns, all edits are there."""
    if world_size == 1:
        return problems
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, problems)
    return {i: why for each in gathered for i, why in each.items()}
