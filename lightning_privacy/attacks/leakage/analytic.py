r"""What a linear layer's gradient gives away of its own input, in closed form.

Symbols: :math:`h` input of the layer, :math:`\delta = \partial L / \partial z` of its output z. For one record
:math:`\partial L / \partial W = \delta h^T` and :math:`\partial L / \partial b = \delta`, so that each row divided by its bias
entry is h. No lock before, and none after, changes that.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.labels import head_of, infer_labels
from lightning_privacy.attacks.leakage.recovered import Recovered
from lightning_privacy.attacks.leakage.target import LeakageTarget
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.errors import InputError

__all__ = ["FirstLayerRecovery", "class_features", "head_features", "linear_input"]


def linear_input(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"]) -> Float[Tensor, " inputs"]:
    """Return the input of a linear layer, of the one record that both gradients are of.

    Args:
        weight: Gradient of its weight.
        bias: Gradient of its bias.

    Returns:
        The input, by least squares over the outputs; exact up to rounding.

    Raises:
        InputError: No output passed any gradient on.

    Example:
        >>> slope, seen = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0, 0.0])
        >>> linear_input(torch.outer(slope, seen), slope).tolist()
        [0.5, 3.0, 0.0]

    Source:
        arXiv 2003.14053, proposition 3.1.
    """
    if not bool(bias.any()):
        raise InputError(
            "The layer's bias has no gradient, so that its input cannot be divided out; take another layer."
        )
    return bias @ weight / bias.square().sum()


def class_features(
    weight: Float[Tensor, "classes features"],
    bias: Float[Tensor, " classes"],
    labels: Int[Tensor, " records"],
) -> Float[Tensor, "records features"]:
    """Return features of a batch whose classes differ: the quotient of the row of each record's class.

    In that row the record's own part (p - 1) outweighs the others' p where the classes are many and the model is
    uncertain; the rest is an error.

    Args:
        weight: Gradient of the head's weight.
        bias: Gradient of the head's bias.
        labels: Class of each record.

    Raises:
        InputError: A class stands for two records, or its bias has no gradient.

    Example:
        >>> class_features(torch.tensor([[-2.0, 0.0], [1.0, 0.0]]), torch.tensor([-1.0, 0.5]), torch.tensor([0])).tolist()
        [[2.0, -0.0]]
    """
    if len(labels.unique()) < len(labels):
        raise InputError(
            "Two records of one class share a row of the head's gradient; their features cannot be divided out."
        )
    if not bool((bias[labels] != 0).all()):
        raise InputError("The bias of a record's class has no gradient, so that its features cannot be divided out.")
    return weight[labels] / bias[labels][:, None]


def head_features(target: LeakageTarget, update: SharedUpdate, seed: int = 0) -> Float[Tensor, "records features"]:
    """Return the features before the head: exactly for one record, approximately for several of different classes.

    Args:
        target: The model.
        update: The shared update.
        seed: Of the label inference.

    Raises:
        InputError: The head was not shared, has no bias, or two records are of one class.
    """
    head = head_of(target)
    gradient = update.mean_gradient()
    names = (f"{head}.weight", f"{head}.bias") if head else ("weight", "bias")
    if head is None or not set(names) <= set(gradient):
        raise InputError(
            "The weight and the bias of a linear head were not both shared; there are no features to divide out."
        )
    weight, bias = (gradient[name] for name in names)
    if update.n_records == 1:
        return linear_input(weight, bias)[None]
    labels = infer_labels(target, update, seed) if update.labels is None else update.labels
    if labels is None:
        raise InputError("The classes of the records could not be inferred, so that no row of the head is theirs.")
    return class_features(weight, bias, labels)


@dataclass(frozen=True)
class FirstLayerRecovery:
    """Divides the picture out of the gradient of a fully connected first layer; nothing is searched.

    Exact for one record. For several it works where some units are active for one record alone: their quotients are that
    record, equal to each other and within [0, 1], and those that most rows agree on are returned.

    Args:
        slack: How far outside [0, 1] a pixel may lie by rounding.

    Source:
        arXiv 2003.14053, proposition 3.1; Fowl et al., arXiv 2110.13057, section 3.1, for rows of one record.
    """

    name: ClassVar[str] = "first_layer"
    access: ClassVar[str] = "public weights and one update"
    estimates_secrets: ClassVar[bool] = True

    slack: float | int = 1e-3

    def reconstruct(self, target: LeakageTarget, update: SharedUpdate, seed: int) -> Recovered:
        """Return the pictures; see `LeakageAttack`.

        Raises:
            InputError: No fully connected layer of the picture's size was shared with its bias.
        """
        pixels = int(torch.tensor(target.image_shape).prod())
        gradient = update.mean_gradient()
        for name, layer in target.skeleton.named_modules():
            weight, bias = gradient.get(f"{name}.weight"), gradient.get(f"{name}.bias")
            if isinstance(layer, nn.Linear) and layer.in_features == pixels and weight is not None and bias is not None:
                break
        else:
            raise InputError(
                "The model has no shared linear layer with a bias that sees the picture's pixels; match gradients."
            )
        if update.n_records == 1:
            found = linear_input(weight, bias)[None]
        else:
            found = self._apart(weight, bias, update.n_records)
        complete = len(found) == update.n_records
        grey = torch.full((update.n_records - len(found), pixels), 0.5).to(found)
        pictures = torch.cat([found, grey]).reshape(-1, *target.image_shape).clamp(0, 1).float().cpu()
        labels = infer_labels(target, update, seed) if update.labels is None else update.labels
        labels = torch.full((update.n_records,), -1) if labels is None else labels.cpu()
        note = "" if complete else f"{len(found)} of {update.n_records} records; the others are grey"
        return Recovered(pictures, labels, 0.0 if complete else float("inf"), complete, note=note)

    def _apart(self, weight: Tensor, bias: Tensor, n: int) -> Float[Tensor, "found pixels"]:
        rows = bias.abs() > bias.abs().max() * 1e-6
        quotients = weight[rows] / bias[rows][:, None]
        fits = ((quotients > -self.slack) & (quotients < 1 + self.slack)).all(1)
        left, found = quotients[fits], []
        while len(found) < n and len(left):
            # A row of one record alone is repeated by other rows of the same record; mixtures are not.
            same = torch.cdist(left, left) < 1e-3 * left.shape[1] ** 0.5
            pick = int(same.sum(1).argmax())
            found.append(left[pick])
            left = left[~same[pick]]
        return torch.stack(found) if found else left
