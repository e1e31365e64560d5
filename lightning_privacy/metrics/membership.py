"""Membership metrics with their intervals: AUROC, TPR at low FPR, PPV, epsilon; pooled over seeds; paired."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.bootstrap import (
    Scores,
    Statistic,
    named_statistic,
    percentile_interval,
    record_replicates,
    seed_replicates,
)
from lightning_privacy.metrics.functional.delong import delong_interval, one_way_interval
from lightning_privacy.metrics.functional.epsilon import epsilon_lower_bound
from lightning_privacy.metrics.functional.low_fpr import PRIORS, low_fpr_validity, ppv_at_priors, tpr_at_fpr_interval
from lightning_privacy.metrics.functional.roc import (
    OperatingPoints,
    auroc,
    balanced_accuracy,
    fit_threshold,
    operating_points,
    roc_curve,
    tpr_at_fpr,
)

__all__ = [
    "FPRS",
    "Scores",
    "Statistic",
    "auroc",
    "balanced_accuracy",
    "fit_threshold",
    "membership_metrics",
    "null_auroc_sd",
    "paired_difference",
    "pool_over_seeds",
    "roc_curve",
    "tpr_at_fpr",
]

FPRS = (0.05, 0.01, 0.001)
"""False-positive rates at which the true-positive rate is reported."""

_PPV_FPR = 0.01  # chosen here: the lowest of `FPRS` that audits of some thousand records can support


_ALL_EQUAL = "all scores are equal, so that the attack tells no record from another: this clears no model"


def null_auroc_sd(n_member: int, n_nonmember: int) -> float:
    """Return the standard deviation of an AUROC when scores say nothing (Mann-Whitney, no ties).

    Example:
        >>> round(null_auroc_sd(40, 80), 3)
        0.056
    """
    return math.sqrt((n_member + n_nonmember + 1) / (12 * n_member * n_nonmember))


def membership_metrics(
    member: Float[Tensor, " members"],
    nonmember: Float[Tensor, " nonmembers"],
    threshold: float | int | None = None,
    fprs: Sequence[float | int] = FPRS,
    bootstrap: int = 2000,
    seed: int = 0,
    auroc_interval: Literal["bootstrap", "delong"] = "bootstrap",
    delta: float | int = 0,
    tests: int = 1,
) -> dict[str, Metric]:
    """Return what an attack's scores on evaluation records amount to, each number with a 95 % interval.

    AUROC, balanced accuracy and advantage have bootstrap intervals over records, or exact ones where all records fell the
    same way: every resample would be like the records, and the interval a point. TPR at FPR and PPV are counts above a
    cut and have exact ones, that of a TPR at least Clopper and Pearson's: it accounts for the cut, whose false-positive
    rate is met on these non-members and another one in the population.

    Scores that are all equal tell nothing apart. That may be the attack's failure (a saturated or rounded score) and
    clears no model: every number but ``epsilon_lower`` is then marked invalid.

    Args:
        member: Scores of evaluation members, higher = more member-like; one-sided, the sign is not searched for here.
        nonmember: Scores of evaluation non-members.
        threshold: Where to cut, found on fit data and never on these records; None leaves out what needs it.
        fprs: False-positive rates in (0, 1).
        bootstrap: Number of resamples; 0 for no bootstrap intervals.
        seed: Seed of the resampling.
        auroc_interval: ``delong`` replaces the bootstrap of the AUROC by DeLong's interval on the logit scale, which
            takes no resampling and is no point where members and non-members are apart.
        delta: The delta at which ``epsilon_lower`` is bounded, in [0, 1).
        tests: Of how many attacks ``epsilon_lower`` is looked at, so that all their bounds hold together (Bonferroni).

    Returns:
        ``auroc``; ``tpr_at_fpr_<rate>`` (marked invalid where the rate allows fewer than 10 false positives; the value
        stays); ``ppv_at_prior_<share>`` for members being 1 %, 10 % and half of the records asked about, at the cut of
        1 % FPR, left out where 1 % allows fewer than 10 false positives. With a threshold: ``balanced_accuracy``;
        ``advantage`` (TPR - FPR there, not its maximum over thresholds, which is optimistic); ``epsilon_lower`` (a lower
        bound, see `epsilon_lower_bound`: for records of one trained model customary, not a theorem).

    Raises:
        InputError: a side is empty, a score is NaN, a delta outside [0, 1), or fewer than one test.

    Example:
        >>> found = membership_metrics(torch.arange(100.0) + 50, torch.arange(100.0), threshold=100, bootstrap=0)
        >>> {name: round(found[name].value, 3) for name in ("auroc", "advantage", "epsilon_lower")}
        {'auroc': 0.875, 'advantage': 0.5, 'epsilon_lower': 2.398}
    """
    points = operating_points(member, nonmember)
    resampled: dict[str, Callable[[OperatingPoints], Tensor]] = {}
    if auroc_interval == "bootstrap":
        resampled["auroc"] = OperatingPoints.auroc
    if threshold is not None:
        cut = float(threshold)
        resampled["balanced_accuracy"] = lambda points: points.balanced_accuracy(cut)
        resampled["advantage"] = lambda points: points.advantage(cut)
    found = _resampled((member, nonmember), points, resampled, bootstrap, seed)
    if auroc_interval == "delong":
        found["auroc"] = delong_interval(member, nonmember)
    elif bootstrap and (exact := one_way_interval(member, nonmember)) is not None:
        found["auroc"] = exact
    if threshold is not None and bootstrap:
        found |= _one_way_at_threshold(member, nonmember, threshold)
    found |= {f"tpr_at_fpr_{fpr:g}": tpr_at_fpr_interval(points, fpr) for fpr in fprs}
    if low_fpr_validity(_PPV_FPR, len(nonmember))[0]:
        found |= {f"ppv_at_prior_{p:g}": m for p, m in zip(PRIORS, ppv_at_priors(points, _PPV_FPR), strict=True)}
    if threshold is not None:
        found["epsilon_lower"] = epsilon_lower_bound(member, nonmember, threshold, delta=delta, tests=tests)
    if len(points.thresholds) == 1:
        found = {
            name: metric if name == "epsilon_lower" else replace(metric, valid=False, reason=_ALL_EQUAL)
            for name, metric in found.items()
        }
    return {name: found[name] for name in sorted(found, key=_place)}


def _one_way_at_threshold(member: Tensor, nonmember: Tensor, threshold: float | int) -> dict[str, Metric]:
    """Return what is measured at the threshold with exact ends where each side lies on one side of it, else nothing."""
    rates = [float((side >= threshold).double().mean()) for side in (member, nonmember)]
    if any(0 < rate < 1 for rate in rates):
        return {}
    # Two rates, both ends of both: Bonferroni.
    ends = [
        clopper_pearson(round(rate * len(side)), len(side), 0.975)
        for rate, side in zip(rates, (member, nonmember), strict=True)
    ]
    value = rates[0] - rates[1]
    low, high = float(ends[0][0] - ends[1][1]), float(ends[0][1] - ends[1][0])
    reason = "the threshold divides neither side's records; the interval is made of the exact ones of both rates"
    return {
        "balanced_accuracy": Metric((1 + value) / 2, (1 + low) / 2, (1 + high) / 2, reason=reason),
        "advantage": Metric(value, low, high, reason=reason),
    }


def _resampled(
    scores: Scores,
    points: OperatingPoints,
    statistics: dict[str, Callable[[OperatingPoints], Tensor]],
    bootstrap: int,
    seed: int,
) -> dict[str, Metric]:
    values = {name: float(statistic(points)) for name, statistic in statistics.items()}
    if not bootstrap or not statistics:
        return {name: Metric(value) for name, value in values.items()}

    def every_statistic(points: OperatingPoints) -> Tensor:
        return torch.stack([statistic(points) for statistic in statistics.values()], dim=1)

    generator = torch.Generator().manual_seed(seed)
    (replicates,) = record_replicates([scores], every_statistic, bootstrap, generator)
    intervals = [percentile_interval(column) for column in replicates.unbind(1)]
    return {name: Metric(value, *ends) for (name, value), ends in zip(values.items(), intervals, strict=True)}


def _place(name: str) -> int:
    # Whoever prints the numbers prints them in this order; a stable sort keeps the rates and priors as they came.
    order = ("auroc", "tpr_at_fpr", "ppv_at_prior", "balanced_accuracy", "advantage", "epsilon_lower")
    return next(i for i, start in enumerate(order) if name.startswith(start))


def _validity(statistic: Statistic, n_nonmember: int) -> tuple[bool, str]:
    prefix, _, rate = statistic.rpartition("_") if isinstance(statistic, str) else ("", "", "")
    return low_fpr_validity(float(rate), n_nonmember) if prefix == "tpr_at_fpr" else (True, "")


def pool_over_seeds(
    runs: Sequence[Scores], statistic: Statistic = "auroc", bootstrap: int = 2000, seed: int = 0
) -> Metric:
    """Return a statistic averaged over split seeds, with an interval from resampling seeds, then records.

    Args:
        runs: (scores of members, scores of non-members) of each seed. With a single one the interval covers records
            alone and says nothing about other splits.
        statistic: ``auroc``, ``tpr_at_fpr_<rate>`` or a function of the operating points.
        bootstrap: Number of resamples.
        seed: Seed of the resampling.

    Raises:
        InputError: no run, an empty side, or an unknown statistic.
    """
    return _over_seeds([[run] for run in runs], statistic, bootstrap, seed)


def paired_difference(
    first: Sequence[Scores],
    second: Sequence[Scores],
    statistic: Statistic = "auroc",
    bootstrap: int = 2000,
    seed: int = 0,
) -> Metric:
    """Return the mean over seeds of a statistic of one model minus that of another on the same records.

    Args:
        first: (scores of members, scores of non-members) of each seed.
        second: The same seeds and records, in the same order, under the other model.
        statistic: ``auroc``, ``tpr_at_fpr_<rate>`` or a function of the operating points.
        bootstrap: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        The difference; its interval excludes zero where the two models differ by more than seeds and records explain.

    Raises:
        InputError: another number of seeds or records on the two sides.
    """
    if len(first) != len(second):
        raise InputError(f"A paired difference needs the same seeds on both sides, not {len(first)} and {len(second)}.")
    return _over_seeds([list(pair) for pair in zip(first, second, strict=True)], statistic, bootstrap, seed)


def _mean_of(metrics: Sequence[Metric]) -> Metric:
    value, low, high = (
        sum(ends) / len(metrics) for ends in zip(*((m.value, m.low, m.high) for m in metrics), strict=True)
    )
    constant = all("level with" in m.reason for m in metrics)
    return Metric(value, low, high, valid=not constant, reason=_ALL_EQUAL if constant else metrics[0].reason)


def _over_seeds(seeds: Sequence[Sequence[Scores]], statistic: Statistic, bootstrap: int, seed: int) -> Metric:
    if not seeds:
        raise InputError("There is no run to pool; give the scores of at least one seed.")
    function = named_statistic(statistic)
    values = []
    for arms in seeds:
        each = [float(function(operating_points(*arm))) for arm in arms]
        values.append(each[0] if len(each) == 1 else each[0] - each[1])
    mean = sum(values) / len(values)
    valid, reason = _validity(statistic, min(len(arms[0][1]) for arms in seeds))
    if not bootstrap:
        return Metric(mean, valid=valid, reason=reason)
    if statistic == "auroc" and all(len(arms) == 1 for arms in seeds):
        # Bonferroni over the seeds: where all intervals hold, so does their mean for the mean.
        exact = [one_way_interval(*arms[0], 1 - 0.05 / len(seeds)) for arms in seeds]
        if None not in exact:
            return _mean_of([each for each in exact if each is not None])
    replicates = seed_replicates(seeds, function, bootstrap, torch.Generator().manual_seed(seed))
    return Metric(mean, *percentile_interval(replicates), valid, reason)
