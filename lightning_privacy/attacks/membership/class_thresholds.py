"""One threshold a class, shrunk to the threshold of all classes where a class has few records."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.metrics.functional.roc import fit_threshold

__all__ = ["ClassThresholds", "fit_class_thresholds"]


@dataclass(frozen=True)
class ClassThresholds:
    """Fitted thresholds.

    Args:
        overall: Threshold fitted on all records; that of a class without records.
        by_class: Threshold of each class that had records.
    """

    overall: float
    by_class: dict[int, float]

    def of(self, labels: Int[Tensor, " records"]) -> Float[Tensor, " records"]:
        """Return the threshold of each record's class."""
        found = [self.by_class.get(label, self.overall) for label in labels.tolist()]
        return torch.tensor(found, dtype=torch.float64, device=labels.device)


def fit_class_thresholds(
    members: Float[Tensor, " members"],
    member_labels: Int[Tensor, " members"],
    nonmembers: Float[Tensor, " nonmembers"],
    nonmember_labels: Int[Tensor, " nonmembers"],
    prior_records: float | int = 10,
) -> ClassThresholds:
    r"""Return the thresholds of the highest balanced accuracy, tau_c = w_c t_c + (1 - w_c) t.

    Symbols: t is the best threshold on all records, t_c that on the records of class c, and w_c = n_c / (n_c + k) with
    n_c the smaller of the class's counts of members and of non-members.

    Args:
        members: Scores of records known to be members, higher = more member-like.
        member_labels: Their classes.
        nonmembers: Scores of records known not to be.
        nonmember_labels: Their classes.
        prior_records: The k above: with so many records on each side a class's own threshold counts one half.

    Example:
        >>> scores, labels = torch.tensor([4.0, 9.0]), torch.tensor([0, 1])
        >>> fitted = fit_class_thresholds(scores, labels, scores - 2, labels, prior_records=1)
        >>> [round(x, 2) for x in fitted.by_class.values()], fitted.overall
        ([5.5, 8.0], 8.0)

    Source:
        arXiv 2003.10595 (class-specific thresholds); the shrinkage is ours.
    """
    overall = fit_threshold(members, nonmembers)
    by_class = {}
    for label in torch.cat([member_labels, nonmember_labels]).unique().tolist():
        inside = members[member_labels == label], nonmembers[nonmember_labels == label]
        count = min(map(len, inside))
        if count:
            weight = count / (count + prior_records)
            by_class[int(label)] = weight * fit_threshold(*inside) + (1 - weight) * overall
    return ClassThresholds(overall, by_class)
