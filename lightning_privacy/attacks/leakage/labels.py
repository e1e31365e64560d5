r"""Which classes a client's records have, read off the head's gradient without any search.

Symbols: :math:`p_{jc}` probability of class c for record j, :math:`y_{jc}` 1 for its own class, n records. For cross-entropy on
a linear head the gradient of the bias is :math:`\partial L / \partial b_c = \frac1n \sum_j (p_{jc} - y_{jc})`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["head_of", "infer_labels", "label_counts", "present_classes", "single_label"]

PROBES = 32  # chosen here: random pictures on which the attacker reads the mean class probabilities


def head_of(target: LeakageTarget) -> str | None:
    """Return the name of the last linear layer with one output a class, or None where there is none."""
    found = None
    for name, layer in target.skeleton.named_modules():
        if isinstance(layer, nn.Linear) and layer.out_features == target.classes:
            found = name
    return found


def single_label(
    bias: Float[Tensor, " classes"] | None = None, weight: Float[Tensor, "classes features"] | None = None
) -> int:
    """Return the class of the only record: the one whose bias gradient is negative.

    Without a bias the rows of the weight's gradient are all multiples of the record's features, and that of its class is
    minus the sum of all others, hence the longest.

    Args:
        bias: Gradient of the head's bias.
        weight: Gradient of the head's weight, read where there is no bias.

    Returns:
        The class. It is exact for any network with a linear head, locked or not.

    Raises:
        InputError: Neither gradient is given.

    Example:
        >>> single_label(torch.tensor([0.2, -0.9, 0.7]))
        1

    Source:
        iDLG, arXiv 2001.02610, section 3.
    """
    if bias is not None:
        return int(bias.argmin())
    if weight is None:
        raise InputError("Neither the head's bias nor its weight was shared, so that the label cannot be read off.")
    if len(weight) == 2:  # both rows are equally long; behind ReLU or sigmoid features the true one is negative
        return int(weight.sum(1).argmin())
    return int(weight.norm(dim=1).argmax())


def present_classes(weight: Float[Tensor, "classes features"], n_records: int) -> Int[Tensor, " found"]:
    """Return the classes of a batch without repeats: those whose weight gradient has the most negative entry.

    Args:
        weight: Gradient of the head's weight, behind features that are not negative.
        n_records: Records in the batch, each of another class.

    Returns:
        One class a record, in ascending order.

    Example:
        >>> present_classes(torch.tensor([[0.1, 0.2], [-0.5, 0.1], [0.0, -0.3]]), 2).tolist()
        [1, 2]

    Source:
        arXiv 2104.07586, equation 8.
    """
    return weight.amin(1).argsort(stable=True)[:n_records].sort().values


def label_counts(
    bias: Float[Tensor, " classes"], n_records: int, probabilities: Float[Tensor, " classes"]
) -> Int[Tensor, " classes"]:
    """Return how many records each class has, by n (mean probability - gradient of the bias), rounded to the sum n.

    A class with a negative gradient has a record for certain.

    Args:
        bias: Gradient of the head's bias.
        n_records: Records in the batch.
        probabilities: Mean class probabilities over the batch, as the attacker supposes them.

    Returns:
        Counts that sum to ``n_records``; exact where the probabilities are.

    Example:
        >>> label_counts(torch.tensor([-0.25, 0.0, 0.25]), 4, torch.full((3,), 1 / 3)).tolist()
        [3, 1, 0]

    Source:
        In the manner of LLG, arXiv 2105.09369, section 4, with the exact expression for the bias in place of an estimated
        impact.
    """
    expected = (n_records * (probabilities - bias)).double().clamp_min(0)
    counts = torch.maximum(expected.floor(), (bias < 0).double()).long()
    while int(counts.sum()) < n_records:
        counts[(expected - counts).argmax()] += 1
    while int(counts.sum()) > n_records:
        spare = torch.where(counts > (bias < 0), counts - expected, -torch.inf)
        if bool(torch.isinf(spare.max())):  # more negative entries than records: the gradient was perturbed
            spare = torch.where(counts > 0, bias.double(), -torch.inf)
        counts[spare.argmax()] -= 1
    return counts


def infer_labels(target: LeakageTarget, update: SharedUpdate, seed: int = 0) -> Int[Tensor, " records"] | None:
    """Return the records' classes as far as the head's gradient gives them away, in ascending order.

    For one record they are exact. For several they rest on mean probabilities that the attacker reads from the model on
    random pictures, under random secrets where there are any: good for an untrained model, poor for a trained one.

    Args:
        target: The model.
        update: The shared update.
        seed: Of the random pictures.

    Returns:
        One class a record; None where neither a bias nor a weight of a linear head was shared.
    """
    head = head_of(target)
    if head is None:
        return None
    gradient = update.mean_gradient()
    prefix = f"{head}." if head else ""
    bias, weight = gradient.get(f"{prefix}bias"), gradient.get(f"{prefix}weight")
    if bias is None and weight is None:
        return None
    if update.n_records == 1:
        return torch.tensor([single_label(bias, weight)], device=target.device)
    if bias is None:
        if weight is None or update.n_records > target.classes:
            return None
        return present_classes(weight, update.n_records)
    counts = label_counts(bias, update.n_records, _mean_probabilities(target, update, seed).to(bias))
    return torch.arange(target.classes, device=bias.device).repeat_interleave(counts)


@torch.no_grad()
def _mean_probabilities(target: LeakageTarget, update: SharedUpdate, seed: int) -> Float[Tensor, " classes"]:
    uniform = torch.full((target.classes,), 1 / target.classes)
    if target.secrets and target.draw_secrets is None:
        return uniform
    generator = seeded_generator(seed, "label counts")
    secrets = {} if target.draw_secrets is None else target.draw_secrets(generator)
    secrets = {name: secrets[name].to(target.device, target.dtype) for name in target.secrets}
    probes = torch.rand((PROBES, *target.image_shape), generator=generator).to(target.device, target.dtype)
    return target.scores(target.complete(secrets), probes, update.mode).softmax(1).mean(0)
