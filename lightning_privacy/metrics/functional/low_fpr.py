"""What an attack achieves at a low false-positive rate: TPR and PPV with exact intervals, and when they mean anything."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from scipy.special import bdtr, bdtrc  # the binomial law of scipy.stats, without the second that its import takes

from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.roc import OperatingPoints

__all__ = ["PRIORS", "low_fpr_validity", "ppv_at_priors", "tpr_at_fpr_interval", "tpr_interval_on_roc"]

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
    """Return the largest true-positive rate at a false-positive rate of at most ``fpr``, with an interval that covers.

    The rate estimated is that of the population: the cut whose false-positive rate there is at most ``fpr`` is not known
    and is estimated too, so that Clopper and Pearson's interval of the members above the cut found is too narrow.

    With probability 1 - a the population's cut has at most ``most`` alarms among these non-members, so that every member
    above it is also above the lowest cut with so few alarms; with probability 1 - a every cut below it has at least
    ``fewest`` alarms, so that every member above a cut with fewer alarms is above it (both counts are quantiles of
    Bin(n, fpr); ties only make them more cautious). The Clopper-Pearson bounds of these two counts of members, each
    one-sided at a = (1 - level) / 4, therefore hold together with confidence ``level``, whatever the scores' laws.

    Args:
        points: Counts of one set of records (a single resample).
        fpr: False-positive rate.
        level: Confidence in (0, 1).

    Returns:
        The rate; invalid, with value and interval, where the rate allows fewer than 10 false positives.

    Example:
        >>> import torch
        >>> from lightning_privacy.metrics.functional.roc import operating_points
        >>> found = tpr_at_fpr_interval(operating_points(torch.arange(1000.0) + 500, torch.arange(1000.0)), 0.05)
        >>> found.value, round(found.low, 3), round(found.high, 3)
        (0.55, 0.498, 0.601)
    """
    hits, _, members, nonmembers = _at(points, fpr)
    every = points.true_positives[0].long().tolist(), points.false_positives[0].long().tolist()
    low, high = _interval(*every, members, nonmembers, fpr, level, complete=True)
    return Metric(hits / members, low, high, *low_fpr_validity(fpr, nonmembers))


def tpr_interval_on_roc(
    roc: Sequence[tuple[float, float]], members: int, nonmembers: int, fpr: float | int, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of `tpr_at_fpr_interval` from a curve that may have been thinned, wider by what is missing.

    Args:
        roc: Points (false-positive rate, true-positive rate) of these records, as `roc_curve` returns them.
        members: Number of members.
        nonmembers: Number of non-members.
        fpr: False-positive rate.
        level: Confidence in (0, 1).

    Example:
        >>> low, high = tpr_interval_on_roc([(0.0, 0.2), (0.05, 0.5), (0.1, 0.6), (1.0, 1.0)], 100, 400, 0.05)
        >>> round(low, 3), round(high, 3)
        (0.118, 0.709)
    """
    counts = sorted((round(x * nonmembers), round(y * members)) for x, y in roc)
    return _interval([y for _, y in counts], [x for x, _ in counts], members, nonmembers, fpr, level, complete=False)


def _interval(
    true_positives: Sequence[int],
    false_positives: Sequence[int],
    members: int,
    nonmembers: int,
    fpr: float | int,
    level: float,
    complete: bool,
) -> tuple[float, float]:
    tail = (1 - level) / 4
    fewest, most = _alarms_at(fpr, nonmembers, tail)
    below, above = bisect_left(false_positives, fewest), bisect_right(false_positives, most)
    fewest_hits = true_positives[below - 1] if below else 0
    if complete:
        most_hits = true_positives[above - 1] if above else 0
    else:  # a cut that was left out may have hits up to those of the next one
        most_hits = true_positives[above] if above < len(true_positives) else members
    low, _ = clopper_pearson(fewest_hits, members, 1 - tail, "lower")
    _, high = clopper_pearson(most_hits, members, 1 - tail, "upper")
    return float(low), float(high)


def _alarms_at(fpr: float | int, nonmembers: int, tail: float) -> tuple[int, int]:
    """Return counts that an exact rate of ``fpr`` falls below, and exceeds, each with probability ``tail`` at most."""
    counts = range(nonmembers + 1)
    fewest = bisect_left(counts, True, key=lambda k: bool(bdtr(k, nonmembers, fpr) >= tail))
    most = bisect_left(counts, True, key=lambda k: bool(bdtrc(k, nonmembers, fpr) <= tail))
    return fewest, most


def ppv_at_priors(
    points: OperatingPoints, fpr: float | int = 0.01, priors: Sequence[float | int] = PRIORS, level: float = 0.95
) -> list[Metric]:
    """Return the share of accusations that are right, PPV = p TPR / (p TPR + (1 - p) FPR), at each share p of members.

    TPR and FPR are those counted at the lowest cut with an FPR of at most ``fpr`` on these records, so FPR may lie below
    ``fpr``, and the PPV estimated is that of this very cut: unlike the TPR of `tpr_at_fpr_interval` it refers to no cut
    that is unknown. PPV rises with TPR and falls with FPR: its ends are made of their opposite Clopper-Pearson ends,
    each at a confidence of (1 + level) / 2, so that both hold together with confidence ``level`` (Bonferroni).

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
