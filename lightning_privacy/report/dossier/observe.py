"""Reading one metric out of the evidence: of an attack, or of the run."""

import math

from lightning_privacy.metrics.membership import null_auroc_sd
from lightning_privacy.report.dossier.models import AttackEntry, Evidence, Number
from lightning_privacy.report.dossier.newcombe import newcombe_difference

__all__ = ["attack_number", "auroc_p_value", "run_number", "sides", "smallest_p_value"]

_SIGNIFICANT = 0.05  # the level at which SACRO-ML calls an AUROC significant


def attack_number(attack: AttackEntry, metric: str) -> Number:
    """Return a metric of one attack; one that it lacks is an invalid number that says so."""
    if metric == "auroc_if_significant":
        return _auroc_if_significant(attack)
    found = attack.metrics.get(metric)
    if found is None:
        there = ", ".join(sorted(attack.metrics)) or "none"
        return _none(f"`{attack.name}` gives no {metric} (it gives {there})")
    return found


def run_number(evidence: Evidence, metric: str) -> Number:
    """Return a metric of the run; one that it lacks is an invalid number that says so."""
    if metric == "generalisation_gap":
        return evidence.generalisation_gap or _none("training and validation accuracy were not both recorded")
    if metric == "share_of_significant_attacks":
        return _share_significant(evidence)
    if metric in ("members_flagged_by_all", "members_flagged_by_all_excess"):
        return _flagged_by_all(evidence, excess=metric.endswith("excess"))
    kind, _, name = metric.partition("/")
    found = [m for m in evidence.measurements if (m.kind, m.name) == (kind, name)]
    if not found:
        there = ", ".join(sorted({f"{m.kind}/{m.name}" for m in evidence.measurements})) or "none"
        return _none(f"there is no measurement {metric} (there are: {there})")
    return max(found, key=lambda m: m.step).number


def auroc_p_value(auroc: float, n_member: int, n_nonmember: int) -> float:
    """Return the one-sided p-value of an AUROC against guessing, by the normal approximation of Mann and Whitney.

    Args:
        auroc: In [0, 1].
        n_member: Members evaluated.
        n_nonmember: Non-members evaluated.

    Example:
        >>> round(auroc_p_value(0.6, 100, 100), 4)
        0.0073
    """
    return 0.5 * math.erfc((auroc - 0.5) / null_auroc_sd(n_member, n_nonmember) / math.sqrt(2))


def smallest_p_value(n_member: int, n_nonmember: int) -> float:
    """Return the one-sided p-value of a perfect attack: the larger of the exact one and that of `auroc_p_value`.

    Args:
        n_member: Members evaluated, at least 1.
        n_nonmember: Non-members evaluated, at least 1.

    Example:
        >>> smallest_p_value(3, 3), round(smallest_p_value(4, 4), 4)
        (0.05, 0.0143)

    Source:
        One of the C(m + n, m) equally likely orders of the records is perfect (H. B. Mann and D. R. Whitney, Annals of
        Mathematical Statistics 18 (1947) 50).
    """
    fewer = min(n_member, n_nonmember, 30)  # beyond 30 either is below 1e-17, and the count has thousands of digits
    return max(1 / math.comb(n_member + n_nonmember, fewer), auroc_p_value(1.0, n_member, n_nonmember))


def sides(attack: AttackEntry) -> tuple[int, int] | None:
    """Return the numbers of members and non-members that an attack was judged on, or None where it does not say."""
    others = [count for role, count in attack.n.items() if role != "member"]
    if "member" not in attack.n or len(others) != 1 or min(attack.n["member"], *others) < 1:
        return None
    return attack.n["member"], others[0]


def _auroc_if_significant(attack: AttackEntry) -> Number:
    auroc, counts = attack_number(attack, "auroc"), sides(attack)
    if auroc.value is None or not auroc.valid:
        return auroc
    if counts is None:
        return _none(f"`{attack.name}` does not say on how many members and non-members it was judged")
    if smallest_p_value(*counts) >= _SIGNIFICANT:
        return _none(
            f"`{attack.name}` was judged on {counts[0]} members and {counts[1]} non-members, of which even a perfect attack "
            "is not significant at 5 %"
        )
    if auroc_p_value(auroc.value, *counts) < _SIGNIFICANT:
        return auroc
    return Number(value=0.5, method="not significant at 5 %")


def _share_significant(evidence: Evidence) -> Number:
    attacks = [a for a in evidence.attacks if a.family == "membership"]
    if not attacks:
        return _none("there is no membership attack")
    significant = 0
    for attack in attacks:
        number = _auroc_if_significant(attack)
        if attack.failed or number.value is None or not number.valid:
            return _none(f"`{attack.name}` has no valid AUROC: {attack.failed or number.reason}")
        significant += number.method != "not significant at 5 %"
    return Number(value=significant / len(attacks))


def _flagged_by_all(evidence: Evidence, excess: bool) -> Number:
    records = evidence.records
    if records is None:
        return _none("no attack kept the scores of the records")
    if len(records.flagging_attacks) < 2:
        return _none("fewer than two attacks have a threshold, so that none can agree")
    member, nonmember = records.member_flag_counts[-1], records.nonmember_flag_counts[-1]
    if not excess:
        return Number(value=member)
    n = records.n_member, records.n_nonmember
    low, high = (n[0] * end for end in newcombe_difference((member, nonmember), n))
    return Number(value=member - n[0] * nonmember / n[1], low=low, high=high, method="Newcombe 1998, method 10")


def _none(reason: str) -> Number:
    return Number(value=None, valid=False, reason=reason)
