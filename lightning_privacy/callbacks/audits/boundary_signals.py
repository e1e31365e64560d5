"""How far each record lies from the decision boundary, measured on the audited module by predicted classes alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.boundary import BoundarySearch, boundary_distance
from lightning_privacy.callbacks.audits.class_scores import class_scores
from lightning_privacy.callbacks.audits.split_access import batch_records, check_roles, role_indices
from lightning_privacy.callbacks.audits.untouched import gather_parts, on_device, rank
from lightning_privacy.core.batches import images_of, labels_of, with_images
from lightning_privacy.core.randomness import derive_seed, seeded_generator
from lightning_privacy.core.ranks import world_size
from lightning_privacy.errors import InputError, SplitError

__all__ = [
    "BOUNDARY_QUERIES",
    "STARTS_ROLE",
    "Starts",
    "find_starts",
    "group_distances",
    "pixel_bounds",
    "role_distances",
]

# chosen here: between 250 and 2500 queries the AUROC on three over-fitted networks of 8 by 8 digits moves by about
# 0.01, and the distances found with 1000 are 7 to 9 % above those found with 2500.
BOUNDARY_QUERIES = 1000
"""Label queries a record, where nobody says how many."""

STARTS_ROLE = "attack_nonmember"
"""The attacker's own records, of which nothing is scored: searches for every role start from the same of them."""

_MOST_STARTS = 256  # chosen here: with 64 or 400 instead, the AUROC on those digits moves by at most 0.01
_AT_ONCE = 256  # pictures a call, whatever the audit's batch size, because rounding must not depend on that
_GROUP = 64  # records searched for together: chosen here, 10 times as fast as one by one on small networks


@dataclass(frozen=True)
class Starts:
    """Pictures that an attacker has, from which searches start.

    Args:
        images: The pictures, on the module's device; the module predicts at least two classes for them.
        bounds: Smallest and largest pixel value, see `pixel_bounds`.
    """

    images: Float[Tensor, "pool ..."]
    bounds: tuple[float, float]


def pixel_bounds(images: Float[Tensor, "..."]) -> tuple[float, float]:
    """Return 0 and 1 for pictures within them, which is how this package's modules take pictures; else their extremes.

    Example:
        >>> pixel_bounds(torch.tensor([0.25, 0.5])), pixel_bounds(torch.tensor([-1.5, 2.0]))
        ((0.0, 1.0), (-1.5, 2.0))
    """
    low, high = float(images.min()), float(images.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def find_starts(module: Any, split: Any, seed: int) -> Starts:
    """Return at most 256 pictures of the role ``attack_nonmember``, drawn by the seed.

    Args:
        module: Has ``logits(batch)``; in evaluation mode.
        split: A set-up `MembershipSplit`.
        seed: Decides which pictures, so that a role in order of classes gives all of them.

    Raises:
        InputError: the pictures are no floats of one shape, the class scores are not one row a picture, or the module
            predicts one class for all of them.
        SplitError: the role is empty, or its loader does not yield its records.
    """
    check_roles(split, [STARTS_ROLE], "A search for the decision boundary")
    count = len(role_indices(split, STARTS_ROLE))
    drawn = torch.randperm(count, generator=seeded_generator(seed, "starts"), device="cpu")[:_MOST_STARTS]
    wanted = torch.zeros(count, dtype=torch.bool, device="cpu").index_fill_(0, drawn, True)
    images, classes, seen = [], set(), 0
    for batch, ids in _batches(split, STARTS_ROLE, _AT_ONCE):
        rows = wanted[seen : seen + len(ids)]
        seen += len(ids)
        moved = on_device(module, batch)
        images.append(_pictures(moved, images[0].shape[1:] if images else None)[rows.to(images_of(moved).device)])
        torch.manual_seed(derive_seed(seed, "starts", *ids))  # of a module that draws when it predicts
        classes |= set(_scores(module, moved, len(ids)).argmax(1)[rows].tolist())
    # With two classes among them there is a start for every record, whatever its own.
    if len(classes) == 1:
        raise InputError(
            f"The model predicts class {classes.pop()} for all {len(drawn)} pictures of the role `{STARTS_ROLE}` from "
            "which a search for its decision boundary could start. Leave the attack `boundary_distance` out, or audit a "
            "model that predicts more than one class."
        )
    pool = torch.cat(images)
    return Starts(pool, pixel_bounds(pool))


def role_distances(module: Any, split: Any, role: str, starts: Starts, *, seed: int, queries: int) -> BoundarySearch:
    """Return what `group_distances` finds for each record of a role, in its order; ranks share the groups of 64.

    Groups are those of the role's order, so that no batch size or number of ranks changes what is found.

    Args:
        module: Has ``logits(batch)``; in evaluation mode.
        split: A set-up `MembershipSplit`.
        role: Whose records.
        starts: Of `find_starts`.
        seed: Of the directions.
        queries: Label queries a record at most.

    Raises:
        InputError: see `group_distances`.
        SplitError: the loader does not yield the records of the role.
    """
    parts = {
        number: group_distances(module, on_device(module, batch), ids, starts, seed=seed, queries=queries)
        for number, (batch, ids) in enumerate(_batches(split, role, _GROUP))
        if number % world_size() == rank()
    }
    found = gather_parts(parts)
    return BoundarySearch(torch.cat([part.distance for part in found]), torch.cat([part.queries for part in found]))


def group_distances(
    module: Any, batch: Any, ids: tuple[str, ...], starts: Starts, *, seed: int, queries: int
) -> BoundarySearch:
    """Return the distance of each record of a batch from the decision boundary and what it cost, on the CPU.

    The directions are a function of the seed and the records' identities. The record's true class is known to the
    attacker, as in the paper; nothing else about the records is used.

    Args:
        module: Has ``logits(batch)``, a function of the pictures; in evaluation mode. Only predicted classes are used.
        batch: Records on the module's device, in any form that `images_of` and `labels_of` read.
        ids: Their identities.
        starts: Of `find_starts`.
        seed: Of the directions.
        queries: Label queries a record at most.

    Returns:
        The distances, zero for a misclassified record, and the queries spent on each; the class of every start, which is
        asked for once, is shared by the records and not counted.

    Raises:
        InputError: the pictures are no floats of one shape, the class scores are not one row a picture or depend on
            more than the pictures, or the budget does not suffice.

    Source:
        arXiv 2007.14321 (boundary distance), arXiv 1904.02144 (the search).
    """
    images, labels = _pictures(batch, starts.images.shape[1:]), labels_of(batch)
    if not len(images) == len(labels) == len(ids):
        raise InputError(
            f"A batch of {len(ids)} records has {len(images)} pictures and {len(labels)} labels; distances from the "
            "decision boundary need one of each."
        )

    def scores(points: Tensor) -> Tensor:
        return _scores(module, with_images(_of_first(batch, len(points)), points), len(points))

    drawn = derive_seed(seed, "boundary distance", *ids)
    torch.manual_seed(drawn)
    expected = _scores(module, batch, len(images))
    torch.manual_seed(drawn)
    if not torch.allclose(scores(images), expected, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise InputError(
            f"`{type(module).__name__}.logits` says something else of a picture when the rest of its batch changes, so "
            "the picture alone has no distance from a decision boundary; leave the attack `boundary_distance` out."
        )
    low, high = starts.bounds
    found = boundary_distance(
        lambda points: scores(points).argmax(1).to(points.device),
        images,
        labels.to(images.device),
        generator=torch.Generator().manual_seed(drawn),
        queries=queries,
        starts=starts.images,
        # The attacker holds the records too, so their own pixel values are known to be allowed.
        bounds=(min(low, float(images.min())), max(high, float(images.max()))),
        batch_size=_AT_ONCE,
    )
    return BoundarySearch(found.distance.cpu(), found.queries.cpu())


def _batches(split: Any, role: str, size: int) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yield the batches of a role and the identities of their records."""
    every_id = tuple(split.record_ids[i] for i in role_indices(split, role))
    seen = 0
    for batch in split.loader(role, size):
        ids = every_id[seen : seen + len(images_of(batch))]
        seen += len(images_of(batch))
        batch_records(batch, ids, role)
        if len(ids) == len(images_of(batch)):
            yield batch, ids
    if seen != len(every_id):
        raise SplitError(f"The loader of the role `{role}` yields {seen} records, but the role has {len(every_id)}.")


def _of_first(batch: Any, count: int) -> Any:
    """Return a batch of copies of its first record, of right lengths; what is not one entry a record stays."""
    records = len(images_of(batch))

    def copied(part: Any) -> Any:
        if isinstance(part, Tensor) and part.ndim and len(part) == records:
            return part[:1].expand(count, *part.shape[1:])
        if isinstance(part, list | tuple) and len(part) == records:
            return [part[0]] * count
        return part

    if isinstance(batch, Mapping):
        return {name: copied(part) for name, part in batch.items()}
    return type(batch)([copied(part) for part in batch])


def _scores(module: Any, batch: Any, pictures: int) -> Float[Tensor, "pictures classes"]:
    scores = class_scores(module, batch)[:, 0]
    if len(scores) != pictures:
        raise InputError(
            f"`{type(module).__name__}.logits` returned {tuple(scores.shape)} for {pictures} pictures; attacks on "
            "classifiers need one row a record."
        )
    return scores


def _pictures(batch: Any, shape: torch.Size | None) -> Float[Tensor, "batch ..."]:
    images = images_of(batch)
    if not images.is_floating_point() or (shape is not None and images.shape[1:] != shape):
        raise InputError(
            f"A search for the decision boundary moves through floats of one shape, but pictures are {images.dtype} of "
            f"shape {tuple(images.shape[1:])}{'' if shape is None else f' where others are of shape {tuple(shape)}'}; "
            "convert and resize them in the datamodule, or leave the attack `boundary_distance` out."
        )
    return images
