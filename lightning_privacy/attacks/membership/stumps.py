"""Boosted decision stumps on top of a given log-odds, for hundreds of records and a dozen features."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

__all__ = ["Stumps", "boost_stumps"]

_DAMPING = 1.0  # records of curvature added to each leaf, as in arXiv 1603.02754, equation 5 (lambda = 1)


@dataclass(frozen=True)
class Stumps:
    """A sum of steps, each on one feature.

    Args:
        feature: Which feature each stump reads.
        cut: Where it steps.
        low: What it adds where the feature is at most the cut.
        high: What it adds above.
    """

    feature: Int[Tensor, " rounds"]
    cut: Float[Tensor, " rounds"]
    low: Float[Tensor, " rounds"]
    high: Float[Tensor, " rounds"]

    def steps(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n rounds"]:
        """Return what each stump adds to the log-odds of each row."""
        return torch.where(features[:, self.feature] <= self.cut, self.low, self.high)

    def first(self, rounds: int) -> "Stumps":
        """Return the first stumps alone."""
        return Stumps(*(x[:rounds] for x in (self.feature, self.cut, self.low, self.high)))


def boost_stumps(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    offset: Float[Tensor, " n"],
    rounds: int,
    rate: float = 0.1,
    leaf: int = 10,
) -> Stumps:
    """Return stumps that lower the class-balanced logistic loss, one exact best split a round.

    Args:
        features: One row a record; only the order within a feature matters.
        labels: 1 for members, 0 for others.
        offset: Log-odds to start from.
        rounds: At most so many; fewer where no split leaves enough records on both sides.
        rate: Share of each Newton step that is taken.
        leaf: Fewest records on either side of a split.

    Example:
        >>> x = torch.arange(20.0, dtype=torch.float64).unsqueeze(1)
        >>> float(boost_stumps(x, (x[:, 0] > 9).long(), torch.zeros(20, dtype=torch.float64), rounds=1).cut)
        9.5

    Source:
        arXiv 1603.02754, equations 5 to 7.
    """
    n, target = len(features), labels.double()
    members = float(target.sum())
    weight = torch.where(labels == 1, n / (2 * members), n / (2 * (n - members))).double()
    values, order = features.sort(0)
    # A split after the i-th smallest value is one only where the next value differs.
    allowed = values[:-1] < values[1:]
    allowed[: leaf - 1] = False
    allowed[n - leaf :] = False
    logits, found = offset.double().clone(), []
    for _ in range(rounds if bool(allowed.any()) else 0):
        p = torch.sigmoid(logits)
        slope, curve = weight * (p - target), weight * p * (1 - p)
        left = [x[order].cumsum(0)[:-1] for x in (slope, curve)]
        right = [x.sum() - part for x, part in zip((slope, curve), left, strict=True)]
        gain = left[0].square() / (left[1] + _DAMPING) + right[0].square() / (right[1] + _DAMPING)
        best = int(gain.masked_fill(~allowed, -1.0).argmax())
        row, feature = divmod(best, features.shape[1])
        low, high = (-rate * s[row, feature] / (c[row, feature] + _DAMPING) for s, c in (left, right))
        cut = (values[row, feature] + values[row + 1, feature]) / 2
        logits = logits + torch.where(features[:, feature] <= cut, low, high)
        found.append((feature, cut, low, high))
    if not found:
        nothing = features.new_zeros(0, dtype=torch.float64)
        return Stumps(torch.zeros(0, dtype=torch.long), nothing, nothing, nothing)
    feature, *numbers = zip(*found, strict=True)
    return Stumps(torch.tensor(feature), *(torch.stack(x) for x in numbers))


def balanced_losses(logits: Float[Tensor, "n rounds"], labels: Num[Tensor, " n"]) -> Float[Tensor, " rounds"]:
    """Return the mean over the two classes of the logistic loss, one number a column."""
    losses = F.softplus(logits) - labels.double().unsqueeze(1) * logits
    return (losses[labels == 1].mean(0) + losses[labels == 0].mean(0)) / 2
