"""An attack on parts of the records: classes, subgroups, records that the model finds hard or easy."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_privacy.callbacks.audits.declared_attribute import DeclaredAttribute
from lightning_privacy.callbacks.audits.split_access import role_indices
from lightning_privacy.core.batches import images_of
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import SplitError
from lightning_privacy.metrics.functional.delong import delong_interval

__all__ = ["FEWEST", "slice_scores", "slices_of", "subgroups_of"]

FEWEST = 10  # chosen here: on fewer records a side an interval says nothing, and a part would point at single people
_MOST = 50  # chosen here: parts of one kind that a reader looks at
_QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")

Parts = dict[str, dict[str, tuple[Tensor, Tensor]]]
"""By what divides, by part: the places of its members and of its non-members."""


def subgroups_of(split: Any, attribute: str | int | Any, role: str) -> Int[Tensor, " records"]:
    """Return the subgroup of each record of a role, in the order of its loader.

    Args:
        split: The set-up split.
        attribute: Where batches hold it; see `DeclaredAttribute`.
        role: A role, ``eval_member`` included.

    Raises:
        InputError: a batch has no such attribute, or it is not one whole number a record.
        SplitError: the loader does not yield the records of its role.
    """
    declared = DeclaredAttribute(attribute)
    found = [declared.values(batch, len(images_of(batch))) for batch in split.loader(role)]
    values = torch.cat(found) if found else torch.zeros(0, dtype=torch.long)
    if len(values) != (expected := len(role_indices(split, role))):
        raise SplitError(f"The loader of the role `{role}` yields {len(values)} records, but the role has {expected}.")
    return values


def slices_of(
    members: Signals, nonmembers: Signals, subgroups: tuple[Int[Tensor, " m"], Int[Tensor, " n"]] | None = None
) -> Parts:
    """Divide the evaluated records; parts with fewer than `FEWEST` records on a side are left out.

    Args:
        members: Signals of the evaluated members; ``labels`` give the classes and ``loss`` the quarters, where there.
        nonmembers: Those of the non-members.
        subgroups: The subgroup of each member and of each non-member.

    Returns:
        Up to 50 parts of each kind, those with the most records; quarters are cut at the non-members' losses, which say
        how hard a record is for who has not learned it.

    Example:
        >>> some = Signals(("a",) * 20, labels=torch.tensor([0, 1] * 10))
        >>> {part: len(places[0]) for part, places in slices_of(some, some)["class"].items()}
        {'0': 10, '1': 10}
    """
    parts: Parts = {}
    if members.labels is not None and nonmembers.labels is not None:
        parts["class"] = _by_value(members.labels, nonmembers.labels)
    if subgroups is not None:
        parts["subgroup"] = _by_value(*subgroups)
    if members.loss is not None and nonmembers.loss is not None:
        losses = members.loss.mean(1), nonmembers.loss.mean(1)
        cuts = losses[1].quantile(torch.tensor([0.25, 0.5, 0.75], dtype=losses[1].dtype))
        quarters = [torch.bucketize(loss, cuts) for loss in losses]
        parts["loss_quantile"] = {_QUARTERS[int(k)]: v for k, v in _by_value(*quarters).items()}
    return {by: inside for by, inside in parts.items() if inside}


def _by_value(member: Int[Tensor, " m"], nonmember: Int[Tensor, " n"]) -> dict[str, tuple[Tensor, Tensor]]:
    sides = {
        value: ((member == value).nonzero().flatten(), (nonmember == value).nonzero().flatten())
        for value in torch.cat([member, nonmember]).unique().tolist()
    }
    large = {value: places for value, places in sides.items() if min(map(len, places)) >= FEWEST}
    kept = sorted(large, key=lambda value: -sum(map(len, large[value])))[:_MOST]
    return {str(value): large[value] for value in sorted(kept)}


def slice_scores(parts: Parts, member: Tensor, nonmember: Tensor) -> list[Mapping[str, Any]]:
    """Return an attack's AUROC on each part, with intervals that hold for all parts at once (Bonferroni).

    Args:
        parts: As returned by `slices_of`.
        member: The attack's scores of the members, higher = more member-like.
        nonmember: Of the non-members.

    Returns:
        Plain values of each part, fit for a result's ``extra``.
    """
    level = 1 - 0.05 / max(1, sum(len(inside) for inside in parts.values()))
    rows = []
    for by, inside in parts.items():
        for value, (m, n) in inside.items():
            found = delong_interval(member[m], nonmember[n], level=level)
            auroc = {name: getattr(found, name) for name in ("value", "low", "high", "valid", "reason")}
            counts = {"member": len(m), "holdout": len(n)}
            rows.append({"by": by, "value": value, "n": counts, "auroc": auroc, "level": level})
    return rows
