r"""Empirical lower bound on the epsilon of (epsilon, delta)-differential privacy from an attack's hits and alarms.

Under (epsilon, delta)-DP every attack obeys :math:`TPR \le e^\epsilon FPR + \delta` and, with the roles changed,
:math:`1 - FPR \le e^\epsilon FNR + \delta`. Hence

.. math::
    \epsilon \ge \max\left(\log\frac{1 - \delta - FNR}{FPR}, \log\frac{1 - \delta - FPR}{FNR}\right).

Rates are counted, so FNR and FPR are replaced by one-sided Clopper-Pearson upper bounds, each at alpha / 2 (Bonferroni):
both directions use the same two bounds, which hold together with confidence 1 - alpha. At 95 % these are the ends of the
two usual 95 % intervals; 25,000 of 25,000 hits without an alarm certify an epsilon of 8.82 and no more.

What this assumes: each record is an independent trial. Records attacked in **one** trained model share its training, so
that the bound is then the customary approximation, not a theorem; `one_run` has the theorem, for records that were
included by independent fair coins.

Source: Kairouz, Oh and Viswanath, arXiv 1311.0776, for the two inequalities; Jagielski, Ullman and Oprea, arXiv 2006.07709,
and Nasr et al., arXiv 2101.04535, for the bound from counts.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.roc import checked_scores, operating_points

__all__ = ["ThresholdStrategy", "epsilon_from_counts", "epsilon_lower_bound", "log_ratio_bound"]

ThresholdStrategy = Literal["given", "split", "bonferroni", "scored_records"]
"""Where the cut of an epsilon lower bound comes from; see `epsilon_lower_bound`."""

_ALPHA = 0.05  # `Metric` holds 95 % bounds


def log_ratio_bound(
    true_positives: Shaped[Tensor, "*counts"] | int,
    members: int,
    false_positives: Shaped[Tensor, "*counts"] | int,
    nonmembers: int,
    delta: float | int = 0,
    alpha: float = _ALPHA,
) -> tuple[Float[Tensor, "*counts"], Float[Tensor, "*counts"]]:
    """Return the two directions of the bound, which may be negative: accused as members, cleared as non-members.

    Args:
        true_positives: Members called members.
        members: Number of members.
        false_positives: Non-members called members.
        nonmembers: Number of non-members.
        delta: The delta at which epsilon is bounded, in [0, 1).
        alpha: Error probability of both directions together, in (0, 1).

    Raises:
        InputError: a count that is no count, or a delta outside [0, 1).

    Example:
        >>> accused, cleared = log_ratio_bound(2100, 25_000, 25, 25_000)
        >>> round(float(accused), 2)
        4.0
    """
    if not 0 <= delta < 1:
        raise InputError(f"Delta is a probability below 1, but {delta} was given; use 0 or the claimed delta.")
    tpr, _ = clopper_pearson(true_positives, members, 1 - alpha / 2, "lower")
    _, fpr = clopper_pearson(false_positives, nonmembers, 1 - alpha / 2, "upper")
    # A numerator at or below zero certifies nothing: its logarithm is minus infinity.
    return (tpr - delta).clamp_min(0).log() - fpr.log(), (1 - delta - fpr).clamp_min(0).log() - (1 - tpr).log()


def epsilon_from_counts(
    true_positives: int,
    members: int,
    false_positives: int,
    nonmembers: int,
    delta: float | int = 0,
    level: float = 0.95,
) -> float:
    """Return the epsilon that counts at one fixed threshold certify, at least 0.

    Args:
        true_positives: Members called members.
        members: Number of members.
        false_positives: Non-members called members.
        nonmembers: Number of non-members.
        delta: The delta at which epsilon is bounded, in [0, 1).
        level: Confidence in (0, 1).

    Raises:
        InputError: a count that is no count, or a delta outside [0, 1).

    Example:
        >>> round(epsilon_from_counts(1000, 1000, 0, 1000), 2)
        5.6
    """
    both = log_ratio_bound(true_positives, members, false_positives, nonmembers, delta, 1 - level)
    return max(0.0, *map(float, both))


def epsilon_lower_bound(
    member: Float[Tensor, " members"],
    nonmember: Float[Tensor, " nonmembers"],
    threshold: float | int | None = None,
    strategy: ThresholdStrategy = "given",
    delta: float | int = 0,
    seed: int = 0,
    tests: int = 1,
) -> Metric:
    """Return a lower bound on epsilon, at 95 % confidence, from an attack's scores.

    Strategies: ``given`` cuts at a threshold found on **other** records. ``split`` chooses the cut of the highest bound
    on a random half of the scores and counts on the other half. ``bonferroni`` takes the best of all cuts and divides
    alpha by their number, one for each count of false positives, so by the number of non-members.
    ``scored_records`` says that the threshold was chosen on these very scores: the number is returned as invalid.

    Args:
        member: Scores of members, higher = more member-like; a record at the threshold counts as called a member.
        nonmember: Scores of non-members.
        threshold: The cut, for ``given`` and ``scored_records`` only.
        strategy: Where the cut comes from.
        delta: The delta at which epsilon is bounded, in [0, 1).
        seed: Of the halves of ``split``, which do not depend on the order of the records.
        tests: How many bounds are looked at together, such as those of all attacks on one model; each is made at an
            alpha of 0.05 / ``tests`` (Bonferroni), so that all of them, and their largest, hold at 95 %.

    Returns:
        The bound as ``value`` and ``low``, at least 0; ``high`` is None, for no attack bounds epsilon from above.

    Raises:
        InputError: a threshold is missing or superfluous, a side is too small, a score is NaN, or fewer than one test.

    Example:
        >>> scores = torch.arange(100.0) + 100, torch.arange(100.0)
        >>> round(epsilon_lower_bound(*scores, threshold=99.5).value, 2)
        3.28
        >>> round(epsilon_lower_bound(*scores, strategy="split").value, 2)
        2.57
        >>> round(epsilon_lower_bound(*scores, threshold=99.5, tests=18).value, 2)
        2.69
        >>> epsilon_lower_bound(*scores, threshold=99.5, strategy="scored_records").valid
        False
    """
    member, nonmember = checked_scores(member, nonmember)
    if tests < 1:
        raise InputError(
            f"An epsilon lower bound is one of at least 1 bound looked at, not of {tests}; give their number."
        )
    alpha = _ALPHA / tests
    if strategy in ("split", "bonferroni") and threshold is not None:
        raise InputError(f"The strategy `{strategy}` chooses its own threshold; leave out `threshold` ({threshold}).")
    if strategy == "bonferroni":
        value = _best(member, nonmember, delta, alpha / len(nonmember))[0]
        return Metric(value, value)
    if strategy == "split":
        (chosen_on, member), (other_chosen_on, nonmember) = _halves(member, nonmember, seed)
        threshold = _best(chosen_on, other_chosen_on, delta, alpha)[1]
    if threshold is None:
        raise InputError(
            f"The strategy `{strategy}` of an epsilon lower bound needs a threshold found on other records; give one, or "
            "use the strategy `split` or `bonferroni`."
        )
    hits, alarms = (int((side >= threshold).sum()) for side in (member, nonmember))
    value = epsilon_from_counts(hits, len(member), alarms, len(nonmember), delta, 1 - alpha)
    if strategy == "scored_records":
        reason = (
            "the threshold was chosen on the scored records, so that the bound does not hold: choose it on other "
            "records, or use the strategy `split` or `bonferroni`"
        )
        return Metric(value, valid=False, reason=reason)
    return Metric(value, value)


def _best(member: Tensor, nonmember: Tensor, delta: float | int, alpha: float) -> tuple[float, float]:
    """Return the highest bound over all cuts, at least 0, and a cut that attains it.

    Alpha must already be divided by the number of cuts. For each count of false positives one cut has the most hits: it
    lies just above an order statistic of the non-members. Given the non-members its hits are binomial, and the share of
    non-members beyond that order statistic has the Beta distribution of the Clopper-Pearson bound, so that the bounds
    hold for every one of these ``n_nonmember`` cuts although the data placed them.
    """
    points = operating_points(member, nonmember)
    counts = points.true_positives[0], len(member), points.false_positives[0], len(nonmember)
    bounds = torch.maximum(*log_ratio_bound(*counts, delta, alpha))
    best = int(bounds.argmax())
    below = points.thresholds[min(best + 1, len(points.thresholds) - 1)]
    middle = float((points.thresholds[best] + below) / 2)
    return max(0.0, float(bounds[best])), middle if math.isfinite(middle) else float(points.thresholds[best])


def _halves(member: Tensor, nonmember: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    if min(len(member), len(nonmember)) < 2:
        raise InputError(
            f"Splitting scores needs two members and two non-members at least, but there are {len(member)} and "
            f"{len(nonmember)}; use the strategy `bonferroni` or more records."
        )
    generator = seeded_generator(seed, "epsilon halves")
    halves = []
    for side in (member, nonmember):
        shuffled = side.sort().values[torch.randperm(len(side), generator=generator).to(side.device)]
        halves.append((shuffled[: len(side) // 2], shuffled[len(side) // 2 :]))
    return halves
