"""Assigning records to the roles that make a membership audit honest: no record, and no picture, in two of them."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from hashlib import sha256
from math import lcm

from lightning_privacy.errors import SplitError

__all__ = ["AUX_SHARE", "DEFAULT_FRACTIONS", "ROLES", "assign_roles", "check_roles", "choose_aux", "resolve_fractions"]

DISJOINT = ("member", "aux_nonmember", "attack_nonmember", "val", "holdout")
ROLES = ("member", "aux_member", *DISJOINT[1:])
"""Roles of records; ``aux_member`` is a part of ``member``, all others are disjoint."""

# Chosen here: the attacker's and the defender's non-members weigh as much as the scored ones.
DEFAULT_FRACTIONS = {"member": 0.3, "aux_nonmember": 0.2, "attack_nonmember": 0.2, "val": 0.1, "holdout": 0.2}
AUX_SHARE = 0.5
"""Part of the members that the defence's proxy and the attacker may fit on."""


def resolve_fractions(given: Mapping[str, float | int] | None) -> dict[str, float | int]:
    """Complete the fractions by the defaults and check them.

    Args:
        given: Share of the pool of each role, and under ``aux_member`` the share of the *members*; roles left out keep
            their defaults. A number above 1 is a number of records.

    Returns:
        A number a role.

    Raises:
        SplitError: Unknown role, an impossible number, no members, or shares that sum to more than 1.
    """
    fractions: dict[str, float | int] = {**DEFAULT_FRACTIONS, "aux_member": AUX_SHARE, **(given or {})}
    if unknown := sorted(set(fractions) - set(ROLES)):
        raise SplitError(
            f"MembershipSplit: `fractions` names unknown roles {unknown}; the roles are {', '.join(ROLES)}."
        )
    if wrong := {role: v for role, v in fractions.items() if not (0 <= v <= 1 or (v > 1 and float(v).is_integer()))}:
        raise SplitError(
            f"MembershipSplit: `fractions` must lie in [0, 1] or, above 1, be whole numbers of records, not {wrong}."
        )
    if fractions["member"] == 0:
        raise SplitError("MembershipSplit: the fraction of `member` is 0, so nothing would be trained on.")
    # Counts are added when the pool's size is known.
    _shares({role: fractions[role] for role in DISJOINT if fractions[role] <= 1}, 1)
    return fractions


def _shares(fractions: Mapping[str, float | int], n: int) -> dict[str, Fraction]:
    """Return exact shares of ``n`` records; what is above 1 is a number of records."""
    shares = {role: Fraction(int(v), n) if v > 1 else Fraction(str(v)) for role, v in fractions.items()}
    if (total := sum(shares.values())) > 1:
        listed = ", ".join(f"{role} {v:g}" for role, v in fractions.items())
        raise SplitError(
            f"MembershipSplit: the fractions sum to {float(total):g} of the records, which is more than 1 ({listed}; "
            f"{n} distinct records); roles that are not named keep their defaults, so lower those too."
        )
    return shares


def apportion(sizes: Sequence[int], shares: Sequence[Fraction]) -> list[list[int]]:
    """Cut each stratum by the shares in whole numbers, carrying what was rounded off into the next stratum.

    Args:
        sizes: Records in each stratum.
        shares: Shares that sum to 1.

    Returns:
        Counts by stratum and share; a stratum's counts sum to its size, the totals differ from the exact ones by less
        than one record.

    Example:
        >>> apportion([1, 1, 1, 1], [Fraction(1, 2), Fraction(1, 2)])
        [[1, 0], [0, 1], [1, 0], [0, 1]]
    """
    unit = lcm(*(share.denominator for share in shares))
    weights = [int(share * unit) for share in shares]
    owed = [0] * len(shares)
    counts = []
    for size in sizes:
        target = [size * weight + rest for weight, rest in zip(weights, owed, strict=True)]
        count = [max(0, t // unit) for t in target]
        while (left := size - sum(count)) != 0:
            rests = [t - c * unit for t, c in zip(target, count, strict=True)]
            if left > 0:
                count[rests.index(max(rests))] += 1
            else:
                takes = [rest if c else max(rests) + 1 for rest, c in zip(rests, count, strict=True)]
                count[takes.index(min(takes))] -= 1
        owed = [t - c * unit for t, c in zip(target, count, strict=True)]
        counts.append(count)
    return counts


def _in_order(names: Sequence[str], strata: Sequence[Hashable], seed: int) -> list[list[str]]:
    """Return distinct names by stratum, each stratum and the strata themselves in the order of sha256(seed, name)."""

    def key(name: str) -> str:
        return sha256(f"{seed}:{name}".encode()).hexdigest()

    by_stratum: dict[Hashable, list[str]] = defaultdict(list)
    stratum_of: dict[str, Hashable] = {}
    for name, stratum in zip(names, strata, strict=True):
        # The same picture under two labels counts once, whichever record comes first.
        stratum_of[name] = min(stratum_of.get(name, stratum), stratum, key=str)
    for name, stratum in stratum_of.items():
        by_stratum[stratum].append(name)
    return sorted((sorted(members, key=key) for members in by_stratum.values()), key=lambda members: key(members[0]))


def _cut(names: Sequence[str], strata: Sequence[Hashable], shares: Mapping[str, Fraction], seed: int) -> dict[str, str]:
    """Return the role of each distinct name; names that no share covers are left out."""
    ordered = _in_order(names, strata, seed)
    rest = 1 - sum(shares.values())
    counts = apportion([len(stratum) for stratum in ordered], [*shares.values(), Fraction(rest)])
    role_of = {}
    for stratum, count in zip(ordered, counts, strict=True):
        place = iter(stratum)
        for role, n in zip(shares, count, strict=False):
            role_of.update({next(place): role for _ in range(n)})
    return role_of


def choose_aux(
    members: Sequence[int], contents: Sequence[str], strata: Sequence[Hashable], share: float | int, seed: int
) -> list[int]:
    """Choose the members that the defence's proxy and the attacker may fit on.

    Args:
        members: Dataset indices.
        contents: Content of every record of the pool.
        strata: Stratum of every record of the pool.
        share: Part of the members; above 1, a number of them.
        seed: Split seed.

    Returns:
        Dataset indices in order.
    """
    names = [contents[i] for i in members]
    shares = _shares({"aux_member": share}, max(1, len(set(names))))
    # Another order than that which chose the members, or aux members would always be the first of each stratum.
    chosen = _cut(names, [strata[i] for i in members], shares, ~seed)
    return [i for i in members if contents[i] in chosen]


def assign_roles(
    contents: Sequence[str], strata: Sequence[Hashable], fractions: Mapping[str, float | int], split_seed: int
) -> dict[str, list[int]]:
    """Assign every record to a role.

    Args:
        contents: Content of each record; records with equal content share a role.
        strata: Label (or caption, or one constant) of each record; every stratum is cut by the same fractions.
        fractions: As returned by `resolve_fractions`.
        split_seed: Order inside a stratum is sha256(split_seed, content).

    Returns:
        Dataset indices by role, ascending.
    """
    shares = _shares({role: fractions[role] for role in DISJOINT}, max(1, len(set(contents))))
    role_of = _cut(contents, strata, shares, split_seed)
    roles: dict[str, list[int]] = {role: [] for role in ROLES}
    for index, content in enumerate(contents):
        if (role := role_of.get(content)) is not None:
            roles[role].append(index)
    roles["aux_member"] = choose_aux(roles["member"], contents, strata, fractions["aux_member"], split_seed)
    return roles


def check_roles(roles: Mapping[str, Sequence[int]], contents: Sequence[str], wanted: Mapping[str, float | int]) -> None:
    """Check what every audit relies on.

    Args:
        roles: Dataset indices by role.
        contents: Content of each record.
        wanted: Fractions; a role with a fraction above 0 must not be empty.

    Raises:
        SplitError: A record or picture has two roles, ``aux_member`` is no part of ``member``, or a role is empty.
    """
    seen: dict[str, tuple[str, int]] = {}
    for role in DISJOINT:
        for index in roles[role]:
            other, first = seen.setdefault(contents[index], (role, index))
            if other != role:
                what = (
                    f"Record {index} is"
                    if first == index
                    else f"Records {first} and {index} hold the same picture and are"
                )
                raise SplitError(
                    f"{what} both `{other}` and `{role}` (content {contents[index][:12]}): no audit could tell a "
                    "member from a non-member. Give it one role."
                )
    if stray := sorted(set(roles["aux_member"]) - set(roles["member"])):
        raise SplitError(f"`aux_member` must be a part of `member`; these records are not: {stray[:10]}.")
    aux = {contents[index] for index in roles["aux_member"]}
    if split := next((i for i in sorted(set(roles["member"]) - set(roles["aux_member"])) if contents[i] in aux), None):
        raise SplitError(
            f"Record {split} holds the picture of an `aux_member` but is not one; give both the same role."
        )
    counts = {
        **{role: len(roles[role]) for role in ROLES},
        "eval_member": len(roles["member"]) - len(roles["aux_member"]),
    }
    # Whoever makes every member an aux_member wants no eval_member.
    all_aux = wanted.get("aux_member", 1) in (1, counts["member"])
    needed = {**wanted, "eval_member": 0 if all_aux else 0.5}
    if empty := [role for role, share in needed.items() if share > 0 and counts[role] == 0]:
        names = ", ".join(f"`{role}` (0 records)" for role in empty)
        raise SplitError(
            f"MembershipSplit leaves {names} of {len(contents)} records ({len(set(contents))} distinct). Raise the "
            "fraction, set it to 0 if the role is not needed, or use a larger pool."
        )
