"""Attack-P: a record's loss among the losses of the population."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.membership.classifier_outputs import classifier_outputs, mean_confidence
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = ["Population", "share_below", "share_below_others"]


def share_below(values: Float[Tensor, " n"], population: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Return a strictly increasing version of the share of the population that lies below each value.

    At the i-th smallest of m population values it is i / (m + 1), at equal ones the mean of their shares, linear in
    between. Beyond the extremes it approaches 0 and 1 as d / (d + s), where d is the distance from the last value and
    s the population's standard deviation: slowly enough that values far outside still differ in float64.

    Args:
        values: Any finite numbers.
        population: At least one number.

    Returns:
        Numbers in (0, 1).

    Example:
        >>> population = torch.tensor([0.0, 1.0, 2.0])
        >>> share_below(torch.tensor([0.0, 1.5, 2.0, 3.0]), population).tolist()
        [0.25, 0.625, 0.75, 0.875]
    """
    x = values.double()
    points, counts = population.double().unique(return_counts=True)
    total = len(population) + 1
    shares = (counts.cumsum(0) - (counts.double() - 1) / 2) / total
    spread = population.double().std() if len(points) > 1 else points.new_ones(())
    right = torch.searchsorted(points, x).clamp(1, max(len(points) - 1, 1))
    left = right - 1
    right = right.clamp_max(len(points) - 1)
    inside = _between(x, points[left], points[right], shares[left], shares[right])
    above, below = (x - points[-1]).clamp_min(0), (points[0] - x).clamp_min(0)
    upper = shares[-1] + (1 - shares[-1]) * above / (above + spread)
    lower = shares[0] * spread / (below + spread)
    return torch.where(above > 0, upper, torch.where(below > 0, lower, inside))


def _between(x: Tensor, left: Tensor, right: Tensor, share_left: Tensor, share_right: Tensor) -> Tensor:
    width = torch.where(right > left, right - left, torch.ones_like(x))
    return share_left + ((x - left) / width).clamp(0, 1) * (share_right - share_left)


def share_below_others(population: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Return for each record of a population its `share_below` among the others, for all at once in O(m log m).

    Args:
        population: At least two numbers.

    Returns:
        Numbers in (0, 1).

    Example:
        >>> [round(share, 3) for share in share_below_others(torch.tensor([0.0, 1.0, 2.0, 4.0])).tolist()]
        [0.151, 0.375, 0.583, 0.917]
    """
    x = population.double()
    points, at, counts = x.unique(return_inverse=True, return_counts=True)
    upto, total, last = counts.cumsum(0).double(), len(x), len(points) - 1
    # Of each distinct value: its share where it is not the one left out, among values of which one below or above is.
    after, before = (upto - (counts - 1) / 2) / total, (upto - 1 - (counts - 1) / 2) / total
    tied = (upto - 1 - (counts - 2) / 2) / total  # one of several equal ones is left out, the others stay
    place = torch.arange(last + 1)
    left, right = (place - 1).clamp_min(0), (place + 1).clamp_max(last)
    shares = _between(points, points[left], points[right], after[left], before[right])
    if last > 0:
        for edge, neighbour, beyond in ((0, 1, before[1]), (last, last - 1, 1 - after[last - 1])):
            others = torch.cat([x[at != edge], x[at == edge][1:]])
            spread = others.std() if len(others.unique()) > 1 else x.new_ones(())
            rest = beyond * spread / ((points[edge] - points[neighbour]).abs() + spread)
            shares[edge] = rest if edge == 0 else 1 - rest
    return torch.where(counts > 1, tied, shares)[at]


class Population:
    """Calls a record a member if few records of the population have a loss as low as its own.

    The score is the share of the population's non-members with a higher loss, so one minus it is close to a p-value: a
    cut at 0.95 has a false-positive rate of about 5 % without a single member. Records beyond the whole population are
    still ordered. Without classes (``per_class=False``, as in the paper) the order is that of `ScaledConfidence`.

    With classes a record's share in its class and that among all are averaged. An average of two p-values is none, so
    the score is its share among the averages of the population's own records, each compared with the others.

    Args:
        per_class: Compare with the population of the record's class; a class's share and that of all classes are
            averaged with the weights n_c and ``prior_records``.
        prior_records: Weight of the whole population, in records.

    Source:
        arXiv 2111.09679 (Attack P); the classes and the tails are ours. Calibration on leave-one-out scores is that
        of the jackknife, arXiv 1905.02928.
    """

    name = "population"
    requires = frozenset({"logits", "labels"})
    access = "class probabilities of the record and of augmented copies, and records of the population"
    learns = False
    calibrates = True

    # chosen here: as in class_thresholds.py
    def __init__(self, per_class: bool = True, prior_records: float | int = 10) -> None:
        if prior_records <= 0:
            raise InputError(f"`prior_records` must be positive, not {prior_records}; a class may have no record.")
        self.per_class, self.prior_records = per_class, prior_records
        self.confidence: Float[Tensor, " m"] | None = None
        self.labels: Int[Tensor, " m"] | None = None
        self.averages: Float[Tensor, " m"] | None = None

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Keep the population, which is the non-members; members are not looked at."""
        if not len(nonmembers):
            raise InputError("The attack `population` has no non-member to compare with; enlarge `attack_nonmember`.")
        self.confidence = mean_confidence(nonmembers, self.name)
        self.labels = classifier_outputs(nonmembers, self.name)[1]
        if self.per_class:
            self.averages = self._averages_of_population(self.confidence, self.labels)
        return True

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the share of the population with a higher loss than each record, in (0, 1).

        Raises:
            RuntimeError: `fit` was not called.
        """
        if self.confidence is None or self.labels is None:
            raise RuntimeError("population.score was called before fit; fit it on records that are no members.")
        values, labels = mean_confidence(signals, self.name), classifier_outputs(signals, self.name)[1]
        share = share_below(values, self.confidence)
        if self.averages is None:
            return share
        average = share.clone()
        for label in labels.unique():
            rows, same = labels == label, self.confidence[self.labels == label]
            if len(same):
                average[rows] = self._average(share_below(values[rows], same), share[rows], len(same))
        return share_below(average, self.averages)

    def _average(self, own: Tensor, share: Tensor, same: int) -> Tensor:
        return (same * own + self.prior_records * share) / (same + self.prior_records)

    def _averages_of_population(self, confidence: Tensor, labels: Tensor) -> Float[Tensor, " m"]:
        if len(confidence) == 1:  # there are no others: half of nobody lies below it
            return torch.full_like(confidence, 0.5)
        share = share_below_others(confidence)
        average = share.clone()
        for label in labels.unique():
            rows = labels == label
            others = int(rows.sum()) - 1
            if others:
                average[rows] = self._average(share_below_others(confidence[rows]), share[rows], others)
        return average
