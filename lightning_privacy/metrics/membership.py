"""Membership metrics with their intervals: AUROC, TPR at low FPR, balanced accuracy; pooled over seeds; paired."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.bootstrap import (
    Scores,
    Statistic,
    named_statistic,
    percentile_interval,
    record_replicates,
    seed_replicates,
)
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

_MIN_FALSE_POSITIVES = 10  # below so many allowed alarms a rate is the luck of a few records


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
    fprs: Sequence[float] = FPRS,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Return AUROC, TPR at each FPR and balanced accuracy, each with a 95 % bootstrap interval over records.

    Args:
        member: Scores of evaluation members, higher = more member-like; one-sided, the sign is not searched for here.
        nonmember: Scores of evaluation non-members.
        threshold: Where to cut for the balanced accuracy, found on fit data and never on these records; None leaves
            it out.
        fprs: False-positive rates in (0, 1).
        bootstrap: Number of resamples; 0 for no intervals.
        seed: Seed of the resampling.

    Returns:
        ``auroc``, ``tpr_at_fpr_<rate>`` (marked invalid where the rate allows fewer than 10 false positives; the
        value stays) and ``balanced_accuracy``.
    """
    statistics = {"auroc": named_statistic("auroc")}
    statistics |= {f"tpr_at_fpr_{fpr:g}": named_statistic(f"tpr_at_fpr_{fpr:g}") for fpr in fprs}
    if threshold is not None:
        cut = float(threshold)
        statistics["balanced_accuracy"] = lambda points: points.balanced_accuracy(cut)
    points = operating_points(member, nonmember)
    values = {name: float(statistic(points)) for name, statistic in statistics.items()}

    def every_statistic(points: OperatingPoints) -> Tensor:
        return torch.stack([statistic(points) for statistic in statistics.values()], dim=1)

    intervals: list[tuple[float | None, float | None]] = [(None, None)] * len(statistics)
    if bootstrap:
        generator = torch.Generator().manual_seed(seed)
        (replicates,) = record_replicates([(member, nonmember)], every_statistic, bootstrap, generator)
        intervals = [percentile_interval(column) for column in replicates.unbind(1)]
    return {
        name: Metric(value, low, high, *_validity(name, len(nonmember)))
        for (name, value), (low, high) in zip(values.items(), intervals, strict=True)
    }


def _validity(name: str, n_nonmember: int) -> tuple[bool, str]:
    prefix, _, rate = name.rpartition("_")
    if prefix != "tpr_at_fpr" or n_nonmember * float(rate) >= _MIN_FALSE_POSITIVES:
        return True, ""
    needed = math.ceil(_MIN_FALSE_POSITIVES / float(rate))
    return False, f"{n_nonmember} non-members cannot support a false-positive rate of {rate}: at least {needed} needed"


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


def _over_seeds(seeds: Sequence[Sequence[Scores]], statistic: Statistic, bootstrap: int, seed: int) -> Metric:
    if not seeds:
        raise InputError("There is no run to pool; give the scores of at least one seed.")
    function = named_statistic(statistic)
    values = []
    for arms in seeds:
        each = [float(function(operating_points(*arm))) for arm in arms]
        values.append(each[0] if len(each) == 1 else each[0] - each[1])
    mean = sum(values) / len(values)
    valid, reason = _validity(statistic if isinstance(statistic, str) else "", min(len(a[0][1]) for a in seeds))
    if not bootstrap:
        return Metric(mean, valid=valid, reason=reason)
    replicates = seed_replicates(seeds, function, bootstrap, torch.Generator().manual_seed(seed))
    return Metric(mean, *percentile_interval(replicates), valid, reason)
