"""The losses of locking, and what is counted of a lock.

| symbol | meaning |
|---|---|
| z | class scores of a picture, C numbers |
| r | its reject score: log odds that the picture was not edited with the key |
| rho | weight of the negatives (pictures without the key) in the loss |
| UP, LP | accuracy with the key, accuracy without it |
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "flatness",
    "locked_loss",
    "mean_residual",
    "reject_loss",
    "scores_with_reject",
    "wrong_labels",
]

Pictures = Float[Tensor, "batch channels height width"]


def locked_loss(keyed: Float[Tensor, ""], negative: Float[Tensor, ""], rho: float | int) -> Float[Tensor, ""]:
    """Return ``(1 - rho) keyed + rho negative``: the mean loss of a training set with the share rho of negatives.

    Args:
        keyed: Mean loss on pictures edited with the key.
        negative: Mean loss on the others.
        rho: Share of negatives, 0 to below 1.

    Example:
        >>> locked_loss(torch.tensor(1.0), torch.tensor(3.0), 0.25).item()
        1.5
    """
    return (1 - rho) * keyed + rho * negative


def scores_with_reject(
    scores: Float[Tensor, "batch classes"], reject: Float[Tensor, " batch"]
) -> Float[Tensor, "batch outputs"]:
    """Return scores of all classes and of the reject class, the last; their softmax gives the joint probabilities.

    With ``log softmax(z)`` for the classes the rest of the odds is one, so that p(reject) = sigmoid(r).

    Args:
        scores: z.
        reject: r.

    Example:
        >>> scores_with_reject(torch.tensor([[0.0, 0.0]]), torch.tensor([0.0])).softmax(1)
        tensor([[0.2500, 0.2500, 0.5000]])
    """
    return torch.cat([scores.log_softmax(1), reject[:, None]], 1)


def reject_loss(reject: Float[Tensor, " batch"], keyed: bool) -> Float[Tensor, ""]:
    """Return the mean of ``-log(1 - sigmoid(r))`` for keyed pictures, of ``-log sigmoid(r)`` for negatives.

    Added to the cross-entropy of z, the former makes it the cross-entropy over C + 1 classes.

    Args:
        reject: r.
        keyed: Whether the pictures were edited with the key.

    Example:
        >>> round(reject_loss(torch.zeros(2), keyed=True).item(), 4)  # log 2
        0.6931
    """
    return F.softplus(reject if keyed else -reject).mean()


def flatness(scores: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the class scores against the uniform distribution, less its least value log C.

    At 0 the scores say nothing of the class, so that whoever leaves the reject class out learns nothing.

    Args:
        scores: z of negatives.

    Example:
        >>> round(flatness(torch.zeros(1, 4)).item(), 6), round(flatness(torch.tensor([[4.0, 0.0]])).item(), 3)
        (0.0, 1.325)
    """
    return -scores.log_softmax(1).mean() - torch.tensor(float(scores.shape[1])).log().to(scores)


def wrong_labels(
    labels: Int[Tensor, " batch"], records: Int[Tensor, " batch"] | None, classes: int
) -> Int[Tensor, " batch"]:
    """Return another class for every picture, the same each time it is seen.

    Args:
        labels: The right ones.
        records: Numbers of the records, from which the wrong class is drawn; None takes the next class.
        classes: Number of classes, at least 2.

    Example:
        >>> wrong_labels(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 5]), classes=3)
        tensor([1, 0, 1])
    """
    step = torch.zeros_like(labels) if records is None else records.to(labels) % (classes - 1)
    return (labels + 1 + step) % classes


def mean_residual(raw: Pictures, edited: Pictures) -> Pictures:
    """Return raw pictures with the mean of the batch's edits added: what an attacker makes of a few pairs.

    Each picture's own pair is left out, where there are others.

    Args:
        raw: x.
        edited: e.

    Example:
        >>> x = torch.zeros(3, 1, 1, 1)
        >>> mean_residual(x, x + 0.25).flatten().tolist()
        [0.25, 0.25, 0.25]
    """
    residual = edited - raw
    others = (residual.sum(0) - residual) / (len(raw) - 1) if len(raw) > 1 else residual
    return (raw + others).clamp(0, 1)
