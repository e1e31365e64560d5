"""Putting what leaves a model on a common scale before a decoder reads it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.target import Tap

__all__ = ["TapScale", "fit_tap_scale", "tap_values"]

_SMALLEST_PROBABILITY = 1e-12
_DEAD = 1e-8  # a unit that never moved on the attacker's pictures is left as it is
_FARTHEST = 50.0  # standard deviations; a unit that was nearly always silent would otherwise swamp all others


def tap_values(observed: Float[Tensor, "n ..."], tap: Tap) -> Float[Tensor, "n ..."]:
    """Return what a decoder should read: log p for probabilities, else the values themselves.

    Args:
        observed: What left the model.
        tap: Where.

    Source:
        Logarithms of probabilities: Yang et al., "Neural network inversion in adversarial setting", CCS 2019.
    """
    return observed.clamp_min(_SMALLEST_PROBABILITY).log() if tap == "probabilities" else observed


@dataclass(frozen=True)
class TapScale:
    """Mean and scale of a tap, by channel for maps and by unit otherwise.

    A sparse code, a map after normalisation and a row of logits differ in size by orders of magnitude; without a common
    scale a decoder that cannot read the tap passes for a defence.

    Args:
        tap: Where.
        mean: Subtracted.
        scale: Divides.
    """

    tap: Tap
    mean: Float[Tensor, "one ..."]
    scale: Float[Tensor, "one ..."]

    def __call__(self, observed: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return standardised values, cut at 50 standard deviations."""
        return ((tap_values(observed, self.tap) - self.mean) / self.scale).clamp(-_FARTHEST, _FARTHEST)


def fit_tap_scale(observed: Float[Tensor, "n ..."], tap: Tap) -> TapScale:
    """Measure the scale of a tap on the attacker's own pictures.

    Args:
        observed: What left the model for them.
        tap: Where.

    Example:
        >>> scale = fit_tap_scale(torch.tensor([[0.0, 10.0], [2.0, 30.0]]), "features")
        >>> scale(torch.tensor([[1.0, 30.0]])).tolist()
        [[0.0, 1.0]]
    """
    values = tap_values(observed, tap)
    over = (0, 2, 3) if values.ndim == 4 else (0,)
    deviation = values.std(over, correction=0, keepdim=True)
    return TapScale(
        tap, values.mean(over, keepdim=True), torch.where(deviation > _DEAD, deviation, torch.ones_like(deviation))
    )
