"""The sensitive attribute, the classes and what is known of a split's records, read once and checked."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_privacy.attacks.attribute.inference import AttributeRecords
from lightning_privacy.callbacks.audits.declared_attribute import DeclaredAttribute
from lightning_privacy.callbacks.audits.split_access import role_indices
from lightning_privacy.callbacks.audits.untouched import untouched
from lightning_privacy.core.batches import labels_of
from lightning_privacy.errors import InputError, SplitError

__all__ = ["FEWEST", "MOST_VALUES", "attribute_values", "read_records"]

FEWEST = 8  # a probe needs 4 records (`fit_attribute_model`), and the strongest attack is chosen on halves
MOST_VALUES = 50  # chosen here: one regression a value, and one pass over the records where the model reads it


def read_records(
    module: L.LightningModule,
    split: Any,
    roles: Sequence[str],
    declared: DeclaredAttribute,
    batch_size: int | None = None,
) -> dict[str, AttributeRecords]:
    """Read attribute, class and known features of the records of some roles, in the order of the roles' loaders.

    Args:
        module: Whose trainer's random state stays as it is.
        split: The set-up `MembershipSplit`.
        roles: Its roles, ``eval_member`` included.
        declared: The attribute.
        batch_size: Records read at once; the datamodule's own if None.

    Raises:
        InputError: a batch has no such attribute, no classes or no known features, or they do not belong together.
        SplitError: a loader does not yield the records of its role.
    """
    # Every rank reads everything: the loaders do so anyway, and an error is then every rank's.
    with untouched(module):
        return {role: _read(split.loader(role, batch_size), split, role, declared) for role in roles}


def _read(loader: Iterable[Any], split: Any, role: str, declared: DeclaredAttribute) -> AttributeRecords:
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in loader:
        labels, known = labels_of(batch).cpu(), declared.known_of(batch)
        if len(known) != len(labels):
            raise InputError(
                f"A batch has {len(labels)} classes and {len(known)} rows of known features; give one row a record."
            )
        rows.append((known, labels, declared.values(batch, len(labels))))
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    expected = len(role_indices(split, role))
    if not columns or len(columns[0]) != expected:
        raise SplitError(
            f"The loader of the role `{role}` yields {len(columns[0]) if columns else 0} records, but the role has "
            f"{expected}."
        )
    if int(columns[1].min()) < 0:
        raise InputError(f"A class of the role `{role}` is {int(columns[1].min())}; number the classes from 0.")
    return AttributeRecords(*columns)


def attribute_values(
    fitted_on: Sequence[AttributeRecords], judged: Sequence[AttributeRecords], name: str
) -> tuple[int, ...]:
    """Return the values that the attribute has, ascending.

    Args:
        fitted_on: The attacker's own records, by role.
        judged: Records whose attribute is inferred.
        name: The attribute's name, for errors.

    Raises:
        InputError: there are too few records to learn the attribute from, one value only, or too many.

    Example:
        >>> def some(*values):
        ...     return AttributeRecords(torch.zeros(len(values), 1), torch.zeros(len(values)).long(), torch.tensor(values))
        >>> attribute_values([some(*[0, 1] * 4), some(*[0, 1] * 4)], [some(2)], "smoker")
        (0, 1, 2)
    """
    fewest = min(len(records.sensitive) for records in fitted_on)
    if fewest < FEWEST:
        raise InputError(
            f"The attacker learns the attribute `{name}` from the roles aux_member and attack_nonmember and needs at least "
            f"{FEWEST} records of each, but one has {fewest}; raise its share in MembershipSplit(fractions=...)."
        )
    own = torch.cat([records.sensitive for records in fitted_on])
    counts = dict(zip(*(x.tolist() for x in own.unique(return_counts=True)), strict=True))
    values = sorted({*counts, *(v for records in judged for v in records.sensitive.tolist())})
    if len(values) > MOST_VALUES:
        raise InputError(
            f"The sensitive attribute `{name}` has {len(values)} different values, more than {MOST_VALUES}; what is "
            "inferred are categories: cut a quantity into bins, and do not declare what numbers the records."
        )
    if sum(count >= 2 for count in counts.values()) < 2:
        raise InputError(
            f"The sensitive attribute `{name}` has no two values with at least 2 records each among those that the attacker "
            f"learns from (records by value: {counts}), so that there is nothing to infer. Declare an attribute that differs "
            "between records, or raise the shares of aux_member and attack_nonmember."
        )
    return tuple(values)
