"""Records that share an output at the resolution at which a service would publish it, classes that are given away."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.structural.proportions import share
from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError

__all__ = ["class_disclosure", "group_sizes", "output_groups", "published", "small_classes"]

DECIMALS = 2  # chosen here: what a service that shows percentages publishes
SMALLEST_GROUP = 10  # the threshold of statistical disclosure control that arXiv 2212.01233 applies to models


def published(logits: Float[Tensor, "records classes"], decimals: int = DECIMALS) -> Int[Tensor, "records 2"]:
    """Return what an interface shows of each record: the top label, and its probability in units of 10^-decimals.

    Args:
        logits: Class scores before the softmax.
        decimals: Digits of the probability, 0 to 9.

    Example:
        >>> published(torch.tensor([[0.0, 3.0], [0.0, -3.0]])).tolist()
        [[1, 95], [0, 95]]
    """
    if not 0 <= decimals <= 9:
        raise InputError(f"A published probability has 0 to 9 decimals, not {decimals}.")
    top = logits.double().softmax(1).max(1)
    return torch.stack([top.indices, (top.values * 10**decimals).round().long()], dim=1)


def group_sizes(outputs: Int[Tensor, "records columns"]) -> Int[Tensor, " records"]:
    """Return how many records, itself included, share each record's output.

    Example:
        >>> group_sizes(torch.tensor([[1, 95], [0, 95], [1, 95]])).tolist()
        [2, 1, 2]
    """
    _, place, counts = torch.unique(outputs, dim=0, return_inverse=True, return_counts=True)
    return counts[place]


def output_groups(
    member: Float[Tensor, "members classes"],
    heldout: Float[Tensor, "heldout classes"],
    decimals: int = DECIMALS,
    smallest: int = SMALLEST_GROUP,
) -> dict[str, Metric]:
    """Return how many records stand out by their published output, training and held-out records side by side.

    The k-anonymity of whole, unrounded output vectors is 1 for every network, because no two of them are equal in
    floating point; so outputs are rounded to what is published. A record whose output nobody shares can be recognised
    by it. Uniqueness falls with the number of records on a side, so both sides are cut to the smaller one.

    Args:
        member: Class scores of training records.
        heldout: Class scores of records that were not trained on.
        decimals: See `published`.
        smallest: A group below this size counts as small.

    Returns:
        ``unique_share``, ``small_group_share`` of members, the same with ``heldout_`` in front, and
        ``smallest_group`` (its size k among members). The intervals take records as independent.

    Example:
        >>> scores = torch.tensor([[0.0, 3.0], [0.0, 3.0], [0.0, 0.1]])
        >>> round(output_groups(scores, scores, smallest=2)["unique_share"].value, 3)
        0.333

    Source:
        arXiv 2502.09396, k-anonymity of a model's outputs; the rounding and the held-out side are ours.
    """
    n = min(len(member), len(heldout))
    if n == 0:
        raise InputError("Groups of equal outputs need at least one record on either side.")
    found: dict[str, Metric] = {}
    for prefix, side in (("", member), ("heldout_", heldout)):
        sizes = group_sizes(published(side[:n], decimals))
        found[f"{prefix}unique_share"] = share(int((sizes == 1).sum()), n)
        found[f"{prefix}small_group_share"] = share(int((sizes < smallest).sum()), n)
        if not prefix:
            found["smallest_group"] = Metric(float(sizes.min()))
    return found


def class_disclosure(
    logits: Float[Tensor, "records classes"], decimals: int = DECIMALS
) -> tuple[dict[str, Metric], list[int], list[int]]:
    """Return which classes the model gives away as absent from its training: never its answer, or never above zero.

    One record with a probability near zero says nothing, because a confident network gives it to every other class. A
    class whose probability rounds to zero for *every* record looked at is one that the model has not learned.

    Args:
        logits: Class scores of records that were not chosen for their class.
        decimals: Digits of a published probability.

    Returns:
        ``never_predicted`` and ``always_zero`` as shares of the classes, and the classes of either kind.

    Example:
        >>> metrics, unused, zero = class_disclosure(torch.tensor([[5.0, 0.0, -9.0], [0.0, 5.0, -9.0]]))
        >>> round(metrics["always_zero"].value, 3), unused, zero
        (0.333, [2], [2])

    Source:
        arXiv 2502.09396, class disclosure, asked here of all records together instead of each group.
    """
    if len(logits) == 0:
        raise InputError("Class disclosure needs the class scores of at least one record.")
    probability = logits.double().softmax(1)
    classes = probability.shape[1]
    answers = torch.bincount(probability.argmax(1), minlength=classes)
    never = (answers == 0).nonzero().flatten().tolist()
    zero = (probability.amax(0) < 0.5 * 10**-decimals).nonzero().flatten().tolist()
    # Every class is looked at, so that these are counts and no estimates: no interval.
    return {"never_predicted": Metric(len(never) / classes), "always_zero": Metric(len(zero) / classes)}, never, zero


def small_classes(
    labels: Int[Tensor, " members"], smallest: int = SMALLEST_GROUP
) -> tuple[dict[str, Metric], dict[int, int]]:
    """Return how many training records stand in a class of few, whose output is nearly about them alone.

    Args:
        labels: True class of every training record.
        smallest: A class with fewer training records counts as small.

    Returns:
        ``small_class_share`` of the records and ``smallest_class``, counts without error; the small classes by size.

    Example:
        >>> metrics, few = small_classes(torch.tensor([0, 0, 0, 1]), smallest=2)
        >>> metrics["small_class_share"].value, few
        (0.25, {1: 1})

    Source:
        arXiv 2212.01233, section on small groups; membership risk falls with the records a class: arXiv 2402.06674.
    """
    if len(labels) == 0:
        raise InputError("The size of classes needs the labels of at least one training record.")
    values, counts = labels.unique(return_counts=True)
    few = {int(v): int(c) for v, c in zip(values, counts, strict=True) if c < smallest}
    metrics = {
        "small_class_share": Metric(sum(few.values()) / len(labels)),
        "smallest_class": Metric(float(counts.min())),
    }
    return metrics, few
