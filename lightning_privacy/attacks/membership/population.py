"""Attack-P: a record's loss among the losses of the population."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.membership.classifier_outputs import classifier_outputs, mean_confidence
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = ["Population", "share_below"]


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
    shares = (counts.cumsum(0) - (counts - 1) / 2) / total
    spread = population.double().std() if len(points) > 1 else points.new_ones(())
    right = torch.searchsorted(points, x).clamp(1, max(len(points) - 1, 1))
    left = right - 1
    right = right.clamp_max(len(points) - 1)
    width = torch.where(right > left, points[right] - points[left], torch.ones_like(x))
    part = ((x - points[left]) / width).clamp(0, 1)
    inside = shares[left] + part * (shares[right] - shares[left])
    above, below = (x - points[-1]).clamp_min(0), (points[0] - x).clamp_min(0)
    upper = shares[-1] + (1 - shares[-1]) * above / (above + spread)
    lower = shares[0] * spread / (below + spread)
    return torch.where(above > 0, upper, torch.where(below > 0, lower, inside))


class Population:
    """Calls a record a member if few records of the population have a loss as low as its own.

    The score is the share of the population's non-members with a higher loss, so one minus it is close to a p-value: a
    cut at 0.95 has a false-positive rate of about 5 % without a single member. Records beyond the whole population are
    still ordered. Without classes (``per_class=False``, as in the paper) the order is that of `ScaledConfidence`.

    Args:
        per_class: Compare with the population of the record's class; a class's share and that of all classes are
            averaged with the weights n_c and ``prior_records``.
        prior_records: Weight of the whole population, in records.

    Source:
        arXiv 2111.09679 (Attack P); the classes and the tails are ours.
    """

    name = "population"
    requires = frozenset({"logits", "labels"})
    access = "class probabilities of the record and of augmented copies, and records of the population"
    learns = False

    # chosen here: as in class_thresholds.py
    def __init__(self, per_class: bool = True, prior_records: float | int = 10) -> None:
        if prior_records <= 0:
            raise InputError(f"`prior_records` must be positive, not {prior_records}; a class may have no record.")
        self.per_class, self.prior_records = per_class, prior_records
        self.confidence: Float[Tensor, " m"] | None = None
        self.labels: Int[Tensor, " m"] | None = None

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Keep the population, which is the non-members; members are not looked at."""
        if not len(nonmembers):
            raise InputError("The attack `population` has no non-member to compare with; enlarge `attack_nonmember`.")
        self.confidence = mean_confidence(nonmembers, self.name)
        self.labels = classifier_outputs(nonmembers, self.name)[1]
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
        if not self.per_class:
            return share
        score = share.clone()
        for label in labels.unique():
            rows, same = labels == label, self.confidence[self.labels == label]
            if len(same):
                own = share_below(values[rows], same)
                total = len(same) + self.prior_records
                score[rows] = (len(same) * own + self.prior_records * share[rows]) / total
        return score
