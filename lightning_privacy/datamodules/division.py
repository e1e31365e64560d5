"""Dividing a pool into roles: identities, strata, drawn or given roles, checks and the split record in one step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_privacy.datamodules.explicit_roles import explicit_roles
from lightning_privacy.datamodules.identity import read_identities
from lightning_privacy.datamodules.roles import assign_roles, check_roles
from lightning_privacy.datamodules.split_record import hash_record, make_record, read_record_file
from lightning_privacy.datamodules.strata import read_strata
from lightning_privacy.errors import SplitError

__all__ = ["Division", "agree", "divide"]


@dataclass(frozen=True)
class Division:
    """A divided pool.

    Args:
        roles: Dataset indices by role, ascending.
        ids: Identity of each record.
        contents: Content of each record; equal content has one role.
        identity: How identities were made.
        record: The split record.
        hash: Its sha256.
    """

    roles: dict[str, list[int]]
    ids: list[str]
    contents: list[str]
    identity: str
    record: dict[str, Any]
    hash: str


def divide(
    dataset: Any,
    *,
    split_seed: int,
    fractions: Mapping[str, float | int],
    stratify: str | int | None,
    roles: Mapping[str, Sequence[int | str]] | str | Path | None,
    record_id: str | Callable[[Any, int], Any] | None,
) -> Division:
    """Divide a pool; the arguments are those of `MembershipSplit`, ``fractions`` completed.

    Raises:
        SplitError: Whatever would make membership ambiguous.
    """
    ids, contents, identity = read_identities(dataset, record_id)
    strata, by = read_strata(dataset, stratify)
    made: dict[str, Any] = {"identity": identity, "stratify": by, "split_seed": split_seed}
    record: dict[str, Any] | None = None
    given: Mapping[str, Sequence[int | str]] | None = None
    if isinstance(roles, str | Path):
        record = read_record_file(roles)
        given = record["roles"]
    else:
        given = roles
    if given is None:
        drawn = assign_roles(contents, strata, fractions, split_seed)
        wanted = dict(fractions)
        made["fractions"] = wanted
    else:
        drawn = explicit_roles(given, ids, contents, strata, fractions["aux_member"], split_seed)
        wanted = {role: 1.0 for role, entries in given.items() if len(entries)}
        wanted["aux_member"] = len(drawn["aux_member"]) / len(drawn["member"])
    check_roles(drawn, contents, wanted)
    # A file that this package wrote is taken over as it is, so that its hash stays.
    if record is None or "version" not in record:
        record = make_record(drawn, ids, contents, **made)
    return Division(drawn, ids, contents, identity, record, hash_record(record))


def agree(split_hash: str) -> None:
    """Check that all processes made the same split.

    Raises:
        SplitError: They read different pools.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    hashes: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(hashes, split_hash)
    if len(set(hashes)) > 1:
        raise SplitError(
            f"The processes read different pools (hashes {[each[:12] for each in hashes]}): all must see the same "
            "records. Check that the data folder is the same on every node and that reading is deterministic."
        )
