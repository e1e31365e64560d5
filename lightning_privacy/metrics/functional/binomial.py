"""Exact intervals of a rate that was counted: Clopper and Pearson, one- and two-sided, for many counts at once."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.special import betaincinv  # the quantile of scipy.stats.beta, without the second that its import takes
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["clopper_pearson"]


def clopper_pearson(
    successes: Shaped[Tensor, "*counts"] | int,
    trials: Shaped[Tensor, "*counts"] | int,
    level: float = 0.95,
    side: Literal["both", "lower", "upper"] = "both",
) -> tuple[Float[Tensor, "*counts"], Float[Tensor, "*counts"]]:
    """Return the exact interval of the success probability behind counts of independent trials.

    The lower end is the quantile ``tail`` of Beta(k, n - k + 1), the upper end the quantile ``1 - tail`` of
    Beta(k + 1, n - k). Coverage is at least ``level`` whatever the probability, at the price of some width. It also
    holds where the count belongs to a cut at an order statistic of the counted scores, because the share beyond an
    order statistic follows just such a Beta distribution.

    Args:
        successes: Counts ``k``, whole numbers from 0 to ``trials``.
        trials: Numbers of trials ``n``, at least 1.
        level: Confidence in (0, 1).
        side: ``both`` leaves (1 - level) / 2 on each side; ``lower`` and ``upper`` leave all of it on one, the other
            end is 0 or 1.

    Returns:
        Lower and upper ends in [0, 1], float64, of the counts' shape.

    Raises:
        InputError: a count that is no whole number from 0 to ``trials``, no trial, or a level outside (0, 1).

    Example:
        >>> [round(float(end), 4) for end in clopper_pearson(8, 10)]
        [0.4439, 0.9748]

    Source:
        Clopper and Pearson, Biometrika 26 (1934), 404-413.
    """
    k, n = np.broadcast_arrays(_numbers(successes), _numbers(trials))
    if not 0 < level < 1:
        raise InputError(f"A confidence level lies between 0 and 1, but {level} was given; 0.95 is usual.")
    if (n < 1).any() or (k < 0).any() or (k > n).any() or (k != np.round(k)).any():
        raise InputError(
            "An exact interval needs counts of whole successes out of at least one trial, 0 <= successes <= trials; "
            f"given were successes {_shown(k)} of trials {_shown(n)}."
        )
    tail = (1 - level) / 2 if side == "both" else 1 - level
    # Where an end is 0 or 1 for certain, the Beta distribution has a parameter 0; any valid one stands in for it.
    low = np.where((k > 0) & (side != "upper"), betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1, tail), 0.0)
    short = np.minimum(k, n - 1)
    high = np.where((k < n) & (side != "lower"), betaincinv(short + 1, n - short, 1 - tail), 1.0)
    return torch.as_tensor(low), torch.as_tensor(high)


def _numbers(counts: Tensor | int) -> np.ndarray:
    return counts.detach().double().cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts, dtype=float)


def _shown(counts: np.ndarray) -> str:
    return np.array2string(counts, threshold=5, precision=6)
