"""Canaries: records planted to be memorised, each with a fair coin that says whether it is trained on."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from lightning_privacy.core.batches import images_of, with_images
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.datamodules.identity import content_digest, item_digest, record_number
from lightning_privacy.datamodules.pool import read_record
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.datamodules.strata import read_strata
from lightning_privacy.errors import InputError, SplitError

__all__ = ["KINDS", "Canary", "CanarySubset", "Planting", "checker", "fair_coins", "plant"]

KINDS = ("mislabelled", "crafted")
_TEMPLATES = 16  # records whose values give the range of crafted pictures
_MEANING = ("label", "caption")


@dataclass(frozen=True)
class Canary:
    """One planted record.

    Args:
        id: Identity, 64 hexadecimal digits.
        label: The class (or caption) that it is trained with where its coin says so.
        included: The coin: whether it is trained on.
        source: Dataset index of the picture; None for a crafted one.
        source_id: Identity of that record, or the digest of the crafted picture.
        source_role: Role of that record, ``unused`` where it has none, ``crafted`` for a crafted picture.
        fields: What replaces the fields of the item.
    """

    id: str
    label: Hashable
    included: bool
    source: int | None
    source_id: str
    source_role: str
    fields: Mapping[Any, Any]

    def plain(self) -> dict[str, Any]:
        """Return what is written down of it."""
        return {
            "id": self.id,
            "label": self.label,
            "in": self.included,
            "source": self.source_id,
            "source_role": self.source_role,
        }


def fair_coins(count: int, seed: int) -> Bool[Tensor, " count"]:
    """Return independent fair coins, a function of the seed alone and of nothing that is known about the canaries.

    Example:
        >>> fair_coins(4, seed=0).shape
        torch.Size([4])
    """
    return torch.rand(count, generator=seeded_generator("canary coins", seed)) < 0.5


def checker(
    shape: Sequence[int], low: float | int, high: float | int, seed: int, number: int
) -> Float[Tensor, "channels height width"]:
    """Return a picture like no record: a chequered pattern of its own size, phase and colours, half blended with noise.

    Args:
        shape: (channels, height, width).
        low: Smallest value.
        high: Largest value.
        seed: Of all canaries.
        number: Of this one.

    Example:
        >>> checker((3, 8, 8), 0.0, 1.0, seed=0, number=0).shape
        torch.Size([3, 8, 8])
    """
    channels, height, width = shape
    generator = seeded_generator("crafted canary", seed, number)
    cell = int(torch.randint(1, max(2, min(height, width) // 2), (), generator=generator))
    down, right = torch.randint(0, 2 * cell, (2,), generator=generator).tolist()
    rows, columns = (torch.arange(height) + down) // cell, (torch.arange(width) + right) // cell
    board = (rows[:, None] + columns[None]) % 2 == 0
    light, dark = torch.rand(2, channels, 1, 1, generator=generator)
    pattern = torch.where(board, light, dark)
    blend = 0.5 * pattern + 0.5 * torch.rand(channels, height, width, generator=generator)
    return low + (high - low) * blend


@dataclass(frozen=True)
class Planting:
    """All canaries of a run, and how their items are made from a pool.

    Args:
        kind: ``mislabelled`` or ``crafted``.
        seed: Of coins, sources, labels and pictures.
        canaries: The canaries.
        template: Dataset index whose item a crafted picture is put into.
        limits: Smallest and largest value of a crafted picture.
    """

    kind: str
    seed: int
    canaries: tuple[Canary, ...]
    template: int
    limits: tuple[float, float]

    def item(self, dataset: Any, number: int, epoch: int | None = None) -> Any:
        """Return one canary as the pool's own items are.

        Args:
            dataset: The pool.
            number: Which canary.
            epoch: Epoch for keyed augmentation of a mislabelled record; a crafted picture is never augmented.
        """
        canary = self.canaries[number]
        if canary.source is None:
            item = read_record(dataset, self.template)
            old = images_of(item)
            picture = checker(old.shape, *self.limits, self.seed, number)
            whole = not old.is_floating_point()
            item = with_images(item, (picture.round() if whole else picture).to(old.dtype))
        else:
            item = read_record(dataset, canary.source, epoch)
        return _changed(item, canary.fields, canary.id)


def _changed(item: Any, fields: Mapping[Any, Any], canary_id: str) -> Any:
    if isinstance(item, Mapping):
        number = {"record": record_number(canary_id)} if "record" in item else {}
        return {**item, **fields, **number}
    values = list(item)
    for place, value in fields.items():
        values[place] = value
    return values if isinstance(item, list) else tuple(values)


class CanarySubset(Dataset[Any]):
    """Some canaries as a dataset.

    Args:
        planting: All canaries.
        dataset: The pool.
        numbers: Which canaries.
    """

    def __init__(self, planting: Planting, dataset: Any, numbers: Sequence[int]) -> None:
        self.planting, self.dataset, self.numbers = planting, dataset, list(numbers)

    def __len__(self) -> int:
        """Return the number of canaries."""
        return len(self.numbers)

    def __getitem__(self, position: int) -> Any:
        """Return one item; a position that knows its epoch is augmented as the pool's records are."""
        return self.planting.item(self.dataset, self.numbers[position], getattr(position, "epoch", None))


def plant(split: Any, count: int, kind: str, seed: int) -> Planting:
    """Draw the canaries of a split that is set up: pictures, wrong labels, coins, each from a random stream of its own.

    Mislabelled canaries are copies of records that no role uses; where these do not suffice, of members that attackers
    may fit on, then of the other members. No picture of another role is copied: those must stay unseen.

    Args:
        split: A set-up `MembershipSplit`.
        count: How many canaries.
        kind: ``mislabelled`` (a real picture with a wrong class, uniform over the others) or ``crafted`` (`checker`,
            class uniform over all).
        seed: Of everything drawn.

    Raises:
        InputError: items without a class or caption, or without a picture.
        SplitError: fewer than two classes, or too few records to mislabel.
    """
    dataset = split.pool.dataset
    strata, key = read_strata(dataset, "auto" if split.stratify is None else split.stratify)
    if key is None:
        raise InputError(
            f"Canaries carry a label, but the items of {type(dataset).__name__} have neither `label` nor `caption` nor "
            "a whole number at their end. Add one, or name it by MembershipSplit(stratify=...)."
        )
    members = split.indices("member")
    donor: dict[Hashable, int] = {}
    for index in members:
        donor.setdefault(strata[index], index)
    classes = sorted(donor, key=str)
    if len(classes) < 2:
        raise SplitError(
            f"Canaries need at least two classes (or captions) among the members; there is {len(classes)}."
        )
    with own_random_state("canary labels"):
        fields = {name: _meaning(dataset[index], key) for name, index in donor.items()}
    labels = seeded_generator("canary labels", seed)
    coins = fair_coins(count, seed).tolist()
    sources = _sources(split, count, seed) if kind == "mislabelled" else [(None, "crafted")] * count
    limits, shape = _pictures(dataset, members, needed=kind == "crafted")
    canaries = []
    for number, (source, role) in enumerate(sources):
        choices = [c for c in classes if source is None or c != strata[source]]
        label = choices[int(torch.randint(len(choices), (), generator=labels))]
        if source is None:
            source_id = content_digest(checker(shape, *limits, seed, number))
        else:
            source_id = split.record_ids[source]
        identity = item_digest(["canary", kind, seed, number, source_id, label])
        canaries.append(Canary(identity, label, coins[number], source, source_id, role, fields[label]))
    return Planting(kind, seed, tuple(canaries), members[0], limits)


def _meaning(item: Any, key: Any) -> dict[Any, Any]:
    """Return the fields that say what an item shows, so that label and caption stay of one mind."""
    if isinstance(item, Mapping):
        return {name: item[name] for name in (*_MEANING, key) if name in item}
    return {key: item[key]}


def _sources(split: Any, count: int, seed: int) -> list[tuple[int, str]]:
    used = {index for indices in split.roles.values() for index in indices}
    taken: set[str] = set()
    found: list[tuple[int, str]] = []
    for role in ("unused", "aux_member", "eval_member"):
        every = [i for i in range(len(split.record_ids)) if i not in used] if role == "unused" else split.indices(role)
        order = torch.randperm(len(every), generator=seeded_generator("canary sources", seed, role))
        for index in (every[place] for place in order.tolist()):
            if len(found) < count and split.record_ids[index] not in taken:
                taken.add(split.record_ids[index])
                found.append((index, role))
    if len(found) < count:
        raise SplitError(
            f"{count} mislabelled canaries need as many records without a role or of `member`, but there are "
            f"{len(found)}. Plant fewer, or lower the fractions of MembershipSplit so that records are left over."
        )
    return found


def _pictures(dataset: Any, members: Sequence[int], needed: bool) -> tuple[tuple[float, float], tuple[int, ...]]:
    """Return the range of some members' pictures and the shape of one."""
    if not needed:
        return (0.0, 1.0), ()
    with own_random_state("canary pictures"):
        pictures = [images_of(dataset[i]) for i in members[:_TEMPLATES]]
    if pictures[0].ndim != 3:
        raise InputError(
            f"Crafted canaries are pictures (channels, height, width), but a record has shape "
            f"{tuple(pictures[0].shape)}; use kind: mislabelled."
        )
    limits = float(min(p.min() for p in pictures)), float(max(p.max() for p in pictures))
    return limits, tuple(pictures[0].shape)
