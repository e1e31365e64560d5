r"""How far a simulated update is from the shared one, and how rough a picture is.

Symbols: :math:`g` the simulated update, :math:`g^*` the shared one, both as one vector over the layers that are matched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = [
    "Matching",
    "cosine_distance",
    "largest_layers",
    "layerwise_cosine",
    "layerwise_error",
    "relative_error",
    "total_variation",
]

Values = Mapping[str, Tensor]
Scalar = Float[Tensor, ""]
_TINY = 1e-30  # keeps a layer whose shared update is exactly zero from dividing by zero


def _sum_of_squares(values: Values, names: tuple[str, ...]) -> Scalar:
    return torch.stack([values[name].square().sum() for name in names]).sum()


def relative_error(found: Values, shared: Values, names: tuple[str, ...]) -> Scalar:
    r"""Return :math:`\|g - g^*\|^2 / \|g^*\|^2`.

    The objective of deep leakage, divided by a constant: its minimum stays where it is, and it can be compared between
    networks. 1 is what the zero update reaches.

    Args:
        found: The simulated update.
        shared: The shared update.
        names: Parameters that are matched.

    Example:
        >>> round(float(relative_error({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 4.0])}, ("w",))), 4)
        0.5625

    Source:
        arXiv 1906.08935, equation 4.
    """
    difference = {name: found[name] - shared[name] for name in names}
    return _sum_of_squares(difference, names) / (_sum_of_squares(shared, names) + _TINY)


def layerwise_error(found: Values, shared: Values, names: tuple[str, ...]) -> Scalar:
    """Return the relative error of each parameter, averaged over the parameters.

    Every parameter counts alike, where in `relative_error` the layer with the longest gradient, the head as a rule, drowns
    the first layers that see the picture.

    Args:
        found: The simulated update.
        shared: The shared update.
        names: Parameters that are matched; those whose shared update is exactly zero are passed over.

    Raises:
        InputError: All shared updates are zero.

    Example:
        >>> shared = {"w": torch.tensor([100.0]), "b": torch.tensor([1.0])}
        >>> float(layerwise_error({"w": torch.tensor([100.0]), "b": torch.tensor([2.0])}, shared, ("w", "b")))
        0.5
    """
    return torch.stack([relative_error(found, shared, (name,)) for name in _alive(shared, names)]).mean()


def cosine_distance(found: Values, shared: Values, names: tuple[str, ...]) -> Scalar:
    r"""Return :math:`1 - \langle g, g^* \rangle / (\|g\| \|g^*\|)`, from 0 to 2.

    Args:
        found: The simulated update.
        shared: The shared update.
        names: Parameters that are matched.

    Example:
        >>> round(float(cosine_distance({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 4.0])}, ("w",))), 4)
        0.2

    Source:
        arXiv 2003.14053, equation 4.
    """
    ours, theirs = ((_sum_of_squares(values, names) + _TINY).sqrt() for values in (found, shared))
    # Half the squared distance of the unit vectors: one minus their product would end at float32's last digit.
    return _sum_of_squares({name: found[name] / ours - shared[name] / theirs for name in names}, names) / 2


def layerwise_cosine(found: Values, shared: Values, names: tuple[str, ...]) -> Scalar:
    """Return the cosine distance of each parameter, averaged over the parameters.

    Args:
        found: The simulated update.
        shared: The shared update.
        names: Parameters that are matched; those whose shared update is exactly zero are passed over.

    Example:
        >>> shared = {"w": torch.tensor([1.0, 0.0]), "b": torch.tensor([2.0])}
        >>> float(layerwise_cosine({"w": torch.tensor([0.0, 1.0]), "b": torch.tensor([1.0])}, shared, ("w", "b")))
        0.5
    """
    return torch.stack([cosine_distance(found, shared, (name,)) for name in _alive(shared, names)]).mean()


def _alive(shared: Values, names: tuple[str, ...]) -> tuple[str, ...]:
    alive = tuple(name for name in names if bool(shared[name].any()))
    if not alive:
        raise InputError("Every shared value that is to be matched is zero, so that it says nothing of the records.")
    return alive


def total_variation(pictures: Float[Tensor, "batch channels height width"]) -> Scalar:
    """Return the mean absolute difference of neighbours, across plus down.

    Args:
        pictures: Values in [0, 1].

    Example:
        >>> float(total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])))
        1.0

    Source:
        Rudin, Osher and Fatemi 1992, anisotropic; as a prior of gradient inversion arXiv 2003.14053, equation 4.
    """
    across = (pictures[..., :, 1:] - pictures[..., :, :-1]).abs().mean()
    return across + (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean()


def largest_layers(shared: Values, count: int) -> tuple[str, ...]:
    """Return the parameters with the longest shared update, in the order in which they were shared.

    Args:
        shared: The shared update.
        count: How many.

    Example:
        >>> largest_layers({"a": torch.ones(2), "b": torch.zeros(2), "c": torch.ones(4)}, 2)
        ('a', 'c')
    """
    lengths = {name: float(value.double().square().sum()) for name, value in shared.items()}
    kept = set(sorted(lengths, key=lambda name: -lengths[name])[:count])
    return tuple(name for name in shared if name in kept)


@dataclass(frozen=True)
class Matching:
    """What an attack minimises over its guesses.

    Args:
        distance: ``l2`` (relative squared error) or ``cosine`` over all parameters together; ``layerwise`` and
            ``layerwise_cosine`` average them over the parameters instead, so that the small ones count.
        total_variation: Weight of the pictures' mean total variation, as a share of the distance at the start of a search:
            distances differ by orders of magnitude between networks.
        layers: Parameters that are matched; None matches all that were shared.

    Raises:
        InputError: The distance is none of the four.
    """

    distance: Literal["l2", "layerwise", "cosine", "layerwise_cosine"] = "l2"
    total_variation: float | int = 0
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.distance not in ("l2", "layerwise", "cosine", "layerwise_cosine"):
            raise InputError(
                f"There is no distance {self.distance!r} of updates; choose l2, layerwise, cosine or layerwise_cosine."
            )

    def prior_unit(self, start: float) -> float:
        """Return what the weight of the total variation is a multiple of.

        Args:
            start: Mean distance at the random starts of a search.
        """
        return start

    def data_term(self, found: Values, shared: Values) -> Scalar:
        """Return the distance of the layers that are matched, without the prior.

        Args:
            found: The simulated update.
            shared: The shared update.

        Raises:
            InputError: None of the layers was shared.
        """
        names = tuple(name for name in shared if self.layers is None or name in self.layers)
        if not names:
            raise InputError(
                f"None of the layers to be matched, {self.layers}, was shared; choose among {sorted(shared)}."
            )
        measure = {
            "l2": relative_error,
            "layerwise": layerwise_error,
            "cosine": cosine_distance,
            "layerwise_cosine": layerwise_cosine,
        }[self.distance]
        return measure(found, shared, names)
