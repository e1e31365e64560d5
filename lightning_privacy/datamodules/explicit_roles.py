"""Roles that the user gives instead of having them drawn."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from lightning_privacy.datamodules.roles import ROLES, choose_aux
from lightning_privacy.errors import SplitError

__all__ = ["explicit_roles"]


def explicit_roles(
    given: Mapping[str, Sequence[int | str]],
    record_ids: Sequence[str],
    contents: Sequence[str],
    strata: Sequence[Hashable],
    aux_share: float | int,
    seed: int,
) -> dict[str, list[int]]:
    """Translate given roles into dataset indices.

    Args:
        given: Dataset indices or record ids by role; records that stand nowhere are not used.
        record_ids: Identity of each record.
        contents: Content of each record.
        strata: Stratum of each record.
        aux_share: Part of the members that becomes ``aux_member`` where that role is not given.
        seed: Split seed, for ``aux_member``.

    Returns:
        Dataset indices by role, ascending.

    Raises:
        SplitError: Unknown role, no members, or records that the pool does not hold.
    """
    if unknown := sorted(set(given) - set(ROLES)):
        raise SplitError(f"MembershipSplit: `roles` names unknown roles {unknown}; the roles are {', '.join(ROLES)}.")
    if not given.get("member"):
        raise SplitError("MembershipSplit: `roles` lists no `member`, so nothing would be trained on.")
    of_id: dict[str, list[int]] = defaultdict(list)
    for index, record_id in enumerate(record_ids):
        of_id[record_id].append(index)
    in_pool = set(range(len(record_ids)))
    roles: dict[str, list[int]] = {}
    for role in ROLES:
        chosen: set[int] = set()
        missing = []
        for entry in given.get(role, ()):
            found = of_id.get(entry, []) if isinstance(entry, str) else in_pool.intersection([entry])
            chosen.update(found)
            if not found:
                missing.append(entry)
        if missing:
            raise SplitError(
                f"MembershipSplit: {len(missing)} of the {len(given[role])} records given as `{role}` are not in the "
                f"pool of {len(record_ids)} records (first: {missing[0]!r}). The data changed, or identities are made "
                "differently."
            )
        roles[role] = sorted(chosen)
    if "aux_member" not in given:
        roles["aux_member"] = choose_aux(roles["member"], contents, strata, aux_share, seed)
    return roles
