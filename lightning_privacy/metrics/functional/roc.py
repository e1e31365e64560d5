"""Receiver operating characteristics of membership scores, exact in ties and vectorised over resamples."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = [
    "OperatingPoints",
    "auroc",
    "balanced_accuracy",
    "checked_scores",
    "fit_threshold",
    "operating_points",
    "roc_curve",
    "tpr_at_fpr",
]

_COUNT_SLACK = 1e-9  # 0.05 * 40 is not exactly 2 in binary


@dataclass(frozen=True)
class OperatingPoints:
    """Counts at each distinct threshold, for one or more resamples of the same records.

    Symbols: threshold ``u`` calls a record a member if its score is at least ``u``.

    Args:
        thresholds: The distinct scores, descending.
        true_positives: Members at or above each threshold, one row a resample.
        false_positives: Non-members at or above each threshold.
    """

    thresholds: Float[Tensor, " points"]
    true_positives: Float[Tensor, "resamples points"]
    false_positives: Float[Tensor, "resamples points"]

    def auroc(self) -> Float[Tensor, " resamples"]:
        """Return P(member > non-member) + P(tie) / 2, which is the area under the trapezoids."""
        tp, fp = (torch.nn.functional.pad(x, (1, 0)) for x in (self.true_positives, self.false_positives))
        area = ((fp[:, 1:] - fp[:, :-1]) * (tp[:, 1:] + tp[:, :-1])).sum(1) / 2
        return area / (tp[:, -1] * fp[:, -1])

    def counts_at_fpr(self, fpr: float | int) -> tuple[Float[Tensor, " resamples"], Float[Tensor, " resamples"]]:
        """Return true and false positives at the lowest cut whose false-positive rate is at most ``fpr``."""
        allowed = fpr * self.false_positives[:, -1:] + _COUNT_SLACK
        last = (self.false_positives <= allowed).sum(1, keepdim=True)
        both = (torch.nn.functional.pad(counts, (1, 0)) for counts in (self.true_positives, self.false_positives))
        true_positives, false_positives = (padded.gather(1, last).squeeze(1) for padded in both)
        return true_positives, false_positives

    def tpr_at_fpr(self, fpr: float | int) -> Float[Tensor, " resamples"]:
        """Return the largest true-positive rate whose false-positive rate is at most ``fpr`` (no interpolation)."""
        return self.counts_at_fpr(fpr)[0] / self.true_positives[:, -1]

    def advantage(self, threshold: float | int) -> Float[Tensor, " resamples"]:
        """Return true-positive rate minus false-positive rate at one threshold."""
        above = int((self.thresholds >= threshold).sum())
        both = (self.true_positives, self.false_positives)
        rates = [torch.nn.functional.pad(counts, (1, 0))[:, above] / counts[:, -1] for counts in both]
        return rates[0] - rates[1]

    def balanced_accuracy(self, threshold: float | int) -> Float[Tensor, " resamples"]:
        """Return the mean of true-positive and true-negative rate at one threshold."""
        return (1 + self.advantage(threshold)) / 2


def checked_scores(
    member: Float[Tensor, " members"], nonmember: Float[Tensor, " nonmembers"]
) -> tuple[Float[Tensor, " members"], Float[Tensor, " nonmembers"]]:
    """Return scores of both sides in float64.

    Args:
        member: Scores of members.
        nonmember: Scores of non-members.

    Raises:
        InputError: a side is empty, or a score is NaN.
    """
    if not len(member) or not len(nonmember):
        raise InputError(
            f"An attack's scores need members and non-members, but there are {len(member)} and {len(nonmember)}; "
            "give both evaluation roles at least one record."
        )
    sides = member.double(), nonmember.double()
    scores = torch.cat(sides)
    if scores.isnan().any():
        raise InputError(
            f"{int(scores.isnan().sum())} of {len(scores)} attack scores are NaN; the audited model's error is not "
            "finite on those records, or the attack divided by zero."
        )
    return sides


def operating_points(
    member: Float[Tensor, " members"],
    nonmember: Float[Tensor, " nonmembers"],
    member_counts: Float[Tensor, "resamples members"] | None = None,
    nonmember_counts: Float[Tensor, "resamples nonmembers"] | None = None,
) -> OperatingPoints:
    """Count true and false positives at every distinct score.

    Args:
        member: Scores of members, higher = more member-like.
        nonmember: Scores of non-members.
        member_counts: How often each member occurs in each resample; once where None.
        nonmember_counts: The same for non-members.

    Raises:
        InputError: a side is empty, or a score is NaN.
    """
    scores = torch.cat(checked_scores(member, nonmember))
    thresholds, rank = scores.unique(return_inverse=True)
    column = len(thresholds) - 1 - rank
    cumulated = []
    for columns, counts in (
        (column[: len(member)], member_counts),
        (column[len(member) :], nonmember_counts),
    ):
        weight = torch.ones(1, len(columns), dtype=torch.float64) if counts is None else counts.double()
        table = weight.new_zeros(len(weight), len(thresholds))
        cumulated.append(table.index_add_(1, columns, weight).cumsum(1))
    return OperatingPoints(thresholds.flip(0), *cumulated)


def auroc(member: Float[Tensor, " members"], nonmember: Float[Tensor, " nonmembers"]) -> float:
    """Return the probability that a member outscores a non-member, ties counting one half.

    Example:
        >>> auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    return float(operating_points(member, nonmember).auroc())


def tpr_at_fpr(member: Float[Tensor, " members"], nonmember: Float[Tensor, " nonmembers"], fpr: float | int) -> float:
    """Return the largest true-positive rate at a false-positive rate of at most ``fpr``.

    Example:
        >>> tpr_at_fpr(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0]), 0.05)
        0.5
    """
    return float(operating_points(member, nonmember).tpr_at_fpr(fpr))


def balanced_accuracy(
    member: Float[Tensor, " members"], nonmember: Float[Tensor, " nonmembers"], threshold: float | int
) -> float:
    """Return the mean of the true-positive and the true-negative rate, calling scores >= ``threshold`` members."""
    return float(operating_points(member, nonmember).balanced_accuracy(threshold))


def fit_threshold(member: Float[Tensor, " members"], nonmember: Float[Tensor, " nonmembers"]) -> float:
    """Return the threshold of the highest balanced accuracy on records of known membership.

    It lies half-way between two neighbouring scores, so that it does not hang on one record's last digits.
    """
    points = operating_points(member, nonmember)
    gain = points.true_positives[0] / len(member) - points.false_positives[0] / len(nonmember)
    best = int(gain.argmax())
    below = points.thresholds[min(best + 1, len(points.thresholds) - 1)]
    middle = float((points.thresholds[best] + below) / 2)
    return middle if math.isfinite(middle) else float(points.thresholds[best])


def roc_curve(
    member: Float[Tensor, " members"], nonmember: Float[Tensor, " nonmembers"], max_points: int = 200
) -> tuple[tuple[float, float], ...]:
    """Return (false-positive rate, true-positive rate) points from (0, 0) to (1, 1), thinned for a log-log plot.

    Args:
        member: Scores of members.
        nonmember: Scores of non-members.
        max_points: At most so many points; at least 4. Where there are more, they are spaced evenly in the logarithm
            of the false-positive rate, and the best true-positive rate without a false positive is always kept.
    """
    points = operating_points(member, nonmember)
    tpr = torch.nn.functional.pad(points.true_positives[0] / len(member), (1, 0))
    fpr = torch.nn.functional.pad(points.false_positives[0] / len(nonmember), (1, 0))
    if len(fpr) > max_points:
        best_without_alarm = int((fpr == 0).sum()) - 1
        grid = torch.logspace(math.log10(1 / len(nonmember)), 0, max_points - 3, dtype=fpr.dtype)
        spaced = torch.searchsorted(fpr, grid * (1 + _COUNT_SLACK), right=True) - 1
        ends = torch.tensor([0, best_without_alarm, len(fpr) - 1])
        keep = torch.cat([ends, spaced]).unique()
        tpr, fpr = tpr[keep], fpr[keep]
    return tuple((float(x), float(y)) for x, y in zip(fpr, tpr, strict=True))
