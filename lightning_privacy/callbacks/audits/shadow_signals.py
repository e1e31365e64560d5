"""Adding what shadow models say of each record to what was observed of the target."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = ["SHADOW_FIELDS", "Evidence", "with_shadows"]

SHADOW_FIELDS = frozenset({"shadow_confidence", "shadow_in"})
"""Fields of `Signals` that shadow models fill."""


@runtime_checkable
class Evidence(Protocol):
    """What a pool of shadow models says of records; see `lightning_privacy.shadows`."""

    record_ids: tuple[str, ...]
    confidence: Float[Tensor, "records shadows queries"]
    inside: Bool[Tensor, "records shadows"]


def with_shadows(signals: Mapping[str, Signals], evidence: Evidence) -> dict[str, Signals]:
    """Return the signals of each role with the shadows' confidence in its records.

    Args:
        signals: Signals by role.
        evidence: Of a pool that covers every record of these roles.

    Raises:
        InputError: the pool does not know some record.
    """
    place = {record: row for row, record in enumerate(evidence.record_ids)}
    made = {}
    for role, each in signals.items():
        unknown = [record for record in each.record_ids if record not in place]
        if unknown:
            raise InputError(
                f"{len(unknown)} records of the role `{role}` are not in the pool of the shadow models, so nothing can "
                "be said of them; include the role in the pool's roles."
            )
        rows = torch.tensor([place[record] for record in each.record_ids])
        made[role] = replace(each, shadow_confidence=evidence.confidence[rows], shadow_in=evidence.inside[rows])
    return made
