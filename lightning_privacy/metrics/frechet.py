"""Frechet and kernel distance of pictures as torchmetrics classes, on any feature extractor."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.frechet import frechet_distance, frechet_distance_of_moments, kernel_distance

__all__ = ["FrechetDistance", "KernelDistance", "frechet_distance", "frechet_distance_of_moments", "kernel_distance"]

_SIDES = ("real", "generated")


class FrechetDistance(Metric):
    """Frechet distance between real and generated pictures; it is called FID only with Inception features.

    Keeps sums of features and of their outer products in float64, so memory does not grow with the pictures and ranks
    are summed.

    Args:
        feature_extractor: Module from pictures (batch, 3, height, width) to features (batch, dim); None if `update`
            is given features.
        **kwargs: See ``torchmetrics.Metric``.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    def __init__(self, feature_extractor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature_extractor = feature_extractor
        for side in _SIDES:
            # Shapes are those of the first batch: a zero-dimensional zero adds to anything, also across ranks.
            self.add_state(f"{side}_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, pictures: Float[Tensor, "batch ..."], real: bool) -> None:
        """Add pictures (or features) of one side."""
        features = _extract(self.feature_extractor, pictures)
        side = _SIDES[0] if real else _SIDES[1]
        for name, value in (("sum", features.sum(0)), ("outer", features.T @ features), ("count", len(features))):
            setattr(self, f"{side}_{name}", getattr(self, f"{side}_{name}") + value)

    def compute(self) -> Float[Tensor, ""]:
        """Return the distance.

        Raises:
            InputError: a side has fewer than two pictures.
        """
        moments = []
        for side in _SIDES:
            total, outer, count = (getattr(self, f"{side}_{name}") for name in ("sum", "outer", "count"))
            if count < 2:
                raise InputError(f"The Frechet distance needs at least two {side} pictures, but has {int(count)}.")
            mean = total / count
            moments += [mean, (outer - count * torch.outer(mean, mean)) / (count - 1)]
        return torch.tensor(frechet_distance_of_moments(*moments), dtype=torch.float64)


class KernelDistance(Metric):
    """Unbiased kernel distance between real and generated pictures; it is called KID only with Inception features.

    Args:
        feature_extractor: As for `FrechetDistance`.
        degree: Of the polynomial kernel.
        gamma: Its scale; one over the number of features if None.
        coef: Its constant.
        **kwargs: See ``torchmetrics.Metric``.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(
        self,
        feature_extractor: nn.Module | None = None,
        degree: int = 3,
        gamma: float | int | None = None,
        coef: float | int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.feature_extractor = feature_extractor
        self.degree, self.gamma, self.coef = degree, gamma, coef
        for side in _SIDES:
            self.add_state(side, [], dist_reduce_fx="cat")

    def update(self, pictures: Float[Tensor, "batch ..."], real: bool) -> None:
        """Add pictures (or features) of one side."""
        getattr(self, _SIDES[0] if real else _SIDES[1]).append(_extract(self.feature_extractor, pictures))

    def compute(self) -> Float[Tensor, ""]:
        """Return the distance over all pictures.

        Raises:
            InputError: a side has fewer than three pictures.
        """
        if not len(self.real) or not len(self.generated):
            raise InputError(
                "The kernel distance needs pictures of both sides; call `update` with real=True and False."
            )
        value, _ = kernel_distance(
            dim_zero_cat(self.real), dim_zero_cat(self.generated), self.degree, self.gamma, self.coef
        )
        return torch.tensor(value, dtype=torch.float64)


def _extract(extractor: nn.Module | None, pictures: Tensor) -> Float[Tensor, "batch dim"]:
    with torch.no_grad():
        return (pictures if extractor is None else extractor(pictures)).flatten(1).double()
