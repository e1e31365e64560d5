"""What an attack achieves at a low false-positive rate: TPR and PPV with exact intervals, and when they mean anything."""

import math
from collections.abc import Sequence

from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.roc import OperatingPoints

__all__ = ["PRIORS", "low_fpr_validity", "ppv_at_priors", "tpr_at_fpr_interval"]

PRIORS = (0.01, 0.1, 0.5)
"""Shares of members among the records that an attacker asks about: few, some, and the customary half
(arXiv 2603.07567)."""

_MIN_FALSE_POSITIVES = 10  # below so many allowed alarms a rate is the luck of a few records


def low_fpr_validity(fpr: float | int, n_nonmember: int) -> tuple[bool, str]:
    """Return whether so many non-members can support a false-positive rate, and why not.

    Args:
        fpr: False-positive rate.
        n_nonmember: Number of non-members.

    Example:
        >>> low_fpr_validity(0.05, 80)[1]
        '80 non-members cannot support a false-positive rate of 0.05: at least 200 needed'
    """
    if n_nonmember * fpr >= _MIN_FALSE_POSITIVES:
        return True, ""
    needed = f"at least {math.ceil(_MIN_FALSE_POSITIVES / fpr)} needed" if fpr > 0 else "no number can"
    return False, f"{n_nonmember} non-members cannot support a false-positive rate of {fpr:g}: {needed}"


def tpr_at_fpr_interval(points: OperatingPoints, fpr: float | int, level: float = 0.95) -> Metric:
    """Return the largest true-positive rate at a false-positive rate of at most ``fpr``, with its exact interval.

    The interval is Clopper and Pearson's of the members above the cut. It is about which members were drawn and takes
    the cut as fixed: it ignores that the cut's own false-positive rate, met on these non-members, is another one in the
    population. With k allowed alarms of n non-members that rate is known to about 1 / sqrt(k) of itself.

    Args:
        points: Counts of one set of records (a single resample).
        fpr: False-positive rate.
        level: Confidence in (0, 1).

    Returns:
        The rate; invalid, with value and interval, where the rate allows fewer than 10 false positives.
    """
    hits, _, members, nonmembers = _at(points, fpr)
    low, high = (float(end) for end in clopper_pearson(hits, members, level))
    return Metric(hits / members, low, high, *low_fpr_validity(fpr, nonmembers))


def ppv_at_priors(
    points: OperatingPoints, fpr: float | int = 0.01, priors: Sequence[float | int] = PRIORS, level: float = 0.95
) -> list[Metric]:
    """Return the share of accusations that are right, PPV = p TPR / (p TPR + (1 - p) FPR), at each share p of members.

    TPR and FPR are those counted at the cut of `tpr_at_fpr_interval`, so FPR may lie below ``fpr``. PPV rises with TPR
    and falls with FPR: its ends are made of their opposite Clopper-Pearson ends, each at a confidence of
    (1 + level) / 2, so that both hold together with confidence ``level`` (Bonferroni).

    Args:
        points: Counts of one set of records (a single resample).
        fpr: False-positive rate of the operating point.
        priors: Shares of members among the records asked about, in (0, 1).
        level: Confidence in (0, 1).

    Returns:
        One number a prior; invalid where ``fpr`` allows fewer than 10 false positives. An attack that accuses nobody
        has no PPV: it is invalid, with the value 0.

    Raises:
        InputError: a prior outside (0, 1).
    """
    hits, alarms, members, nonmembers = _at(points, fpr)
    tpr, fpr_found = (clopper_pearson(k, n, (1 + level) / 2) for k, n in ((hits, members), (alarms, nonmembers)))
    valid, reason = low_fpr_validity(fpr, nonmembers)
    if valid and not hits and not alarms:
        valid, reason = False, f"the attack accuses nobody at a false-positive rate of {fpr:g}"
    found = []
    for prior in priors:
        if not 0 < prior < 1:
            raise InputError(f"A share of members lies between 0 and 1, but {prior} was given.")
        value = _ppv(prior, hits / members, alarms / nonmembers)
        low, high = _ppv(prior, float(tpr[0]), float(fpr_found[1])), _ppv(prior, float(tpr[1]), float(fpr_found[0]))
        found.append(Metric(value, low, high, valid, reason))
    return found


def _ppv(prior: float, tpr: float, fpr: float) -> float:
    right, wrong = prior * tpr, (1 - prior) * fpr
    return right / (right + wrong) if right else 0.0


def _at(points: OperatingPoints, fpr: float | int) -> tuple[int, int, int, int]:
    hits, alarms = (int(counts) for counts in points.counts_at_fpr(fpr))
    return hits, alarms, int(points.true_positives[0, -1]), int(points.false_positives[0, -1])
