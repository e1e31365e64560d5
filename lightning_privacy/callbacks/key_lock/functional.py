r"""The mathematics of a key-locked normalisation layer, as pure functions.

| symbol | here | meaning |
|---|---|---|
| :math:`k` | ``key`` | the private key, or what the lock before makes of it; d numbers |
| :math:`A, a` | ``weight``, ``bias`` | weight and bias of one branch of the private lock; C rows |
| :math:`\gamma, \beta` | ``scale``, ``shift`` | what the lock gives the normalisation layer; C numbers each |
| :math:`\hat u` | ``normalised`` | output of the normalisation layer without scale and shift |

:math:`\gamma = \phi(A_\gamma k_g + a_\gamma)`, :math:`\beta = \psi(A_\beta k_b + a_\beta)`, :math:`y = \gamma \hat u + \beta`.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.secrets.keys import site_key

__all__ = [
    "ACTIVATIONS",
    "DISTRIBUTIONS",
    "Activation",
    "Branch",
    "Distribution",
    "affine",
    "branches",
    "derived_key",
    "key_gain",
    "lock",
    "refit",
    "softplus_inverse",
]

Activation = Literal["softplus", "relu", "sigmoid"]
"""Of a whole lock; `branches` says what each of its two branches does."""
Branch = Literal["softplus", "relu", "sigmoid", "identity"]
Distribution = Literal["normal", "uniform"]
ACTIVATIONS: tuple[Activation, ...] = ("softplus", "relu", "sigmoid")
DISTRIBUTIONS: tuple[Distribution, ...] = ("normal", "uniform")


def lock(
    key: Float[Tensor, " d"], weight: Float[Tensor, "channels d"], bias: Float[Tensor, " channels"], activation: Branch
) -> Float[Tensor, " channels"]:
    r"""Return what one branch of a lock makes of a key: :math:`\phi(A k + a)`.

    Args:
        key: k.
        weight: A of the branch.
        bias: a of the branch.
        activation: phi. With ``relu`` about half of all channels come out as zero and get no gradient for this key.

    Example:
        >>> key, weight = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> lock(key, weight, torch.tensor([0.5, 0.5]), "relu").tolist()
        [1.5, 0.0]

    Source:
        arXiv 2305.04095, section 3, and its released code, where phi is a ReLU or a sigmoid.
    """
    z = F.linear(key, weight, bias)
    if activation == "identity":
        return z
    return {"softplus": F.softplus, "relu": F.relu, "sigmoid": torch.sigmoid}[activation](z)


def branches(activation: Activation) -> tuple[Branch, Branch]:
    """Return the activation of the scale and that of the shift.

    The paper puts both through the same one, so that no shift is negative: what follows the layer loses the half of its
    inputs below the mean. With ``softplus`` the shift passes as it is and may have either sign, as that of an ordinary
    normalisation layer, while the scale stays above zero: no channel dies.

    Args:
        activation: Of the lock.

    Example:
        >>> branches("softplus"), branches("relu")
        (('softplus', 'identity'), ('relu', 'relu'))
    """
    return ("softplus", "identity") if activation == "softplus" else (activation, activation)


def key_gain(activation: Activation, d: int) -> float:
    """Return by what keys are multiplied before they enter a lock.

    A step of gradient descent moves A k by the squared norm of k times as far as a bias, a thousandfold for a key of 1024
    normal entries. Our lock divides keys by the square root of their length, so that both move alike; the paper's does not.

    Args:
        activation: Of the lock.
        d: Length of the key.

    Example:
        >>> key_gain("softplus", 1024), key_gain("relu", 1024)
        (0.03125, 1.0)
    """
    return 1 / math.sqrt(d) if activation == "softplus" else 1.0


def refit(
    bias: Float[Tensor, " channels"],
    weight: Float[Tensor, "channels d"],
    old: Float[Tensor, " d"],
    new: Float[Tensor, " d"],
) -> Float[Tensor, " channels"]:
    """Return the bias under which a new key gives what the old one gave: ``a + A (old - new)``, whatever the activation.

    Args:
        bias: a under the old key.
        weight: A.
        old: Key as it enters the lock.
        new: Key that takes its place.

    Example:
        >>> refit(torch.tensor([0.5]), torch.tensor([[2.0]]), torch.tensor([1.0]), torch.tensor([3.0])).item()
        -3.5
    """
    return bias + weight @ (old - new)


def softplus_inverse(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the number whose softplus is given.

    Args:
        value: Above 0.

    Example:
        >>> round(softplus_inverse(torch.tensor(1.0)).item(), 4)
        0.5413
    """
    return value + torch.log(-torch.expm1(-value))


def derived_key(material: bytes, site: str, size: int, distribution: Distribution) -> Float[Tensor, " {size}"]:
    """Return the key of one layer, derived from a master key; keys of other layers say nothing about it.

    Args:
        material: The master key, at least 16 random bytes.
        site: What the key is for.
        size: d.
        distribution: ``normal`` is N(0, 1), ``uniform`` U(0, 1) as in the released code. The mean 1/2 of the latter is shared
            by all keys: A k of two of them has a cosine of 3/4, so that most of the scale belongs to the lock alone.

    Example:
        >>> [round(x, 3) for x in derived_key(bytes(range(32)), "conv1", 2, "uniform").tolist()]
        [0.86, 0.951]
    """
    normal = site_key(material, site, size, "normal")
    return torch.special.ndtr(normal) if distribution == "uniform" else normal


def affine(
    normalised: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*channels"],
    shift: Float[Tensor, "*channels"],
    trailing: int,
) -> Float[Tensor, "*shape"]:
    r"""Return :math:`\gamma \hat u + \beta`, in the precision of the input.

    Args:
        normalised: Output of the normalisation layer.
        scale: gamma.
        shift: beta.
        trailing: Dimensions of the input after those that scale and shift belong to.

    Example:
        >>> affine(torch.ones(1, 2, 2), torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]), trailing=1).tolist()
        [[[2.0, 2.0], [4.0, 4.0]]]
    """
    tail = (1,) * trailing
    scale, shift = (value.reshape(*value.shape, *tail).to(normalised.dtype) for value in (scale, shift))
    return torch.addcmul(shift, normalised, scale)
