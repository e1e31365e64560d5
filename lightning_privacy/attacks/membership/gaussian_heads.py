"""A normal distribution whose mean and standard deviation are linear in features, fitted in closed form."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["GaussianHeads", "fit_gaussian_heads", "ridge_by_leave_one_out"]

PENALTIES = tuple(10.0**k for k in range(-3, 5))  # per record; the largest leaves the intercept alone
_MEAN_LOG_ABS_NORMAL = -(math.log(2) + 0.5772156649015329) / 2  # E log|Z| of a standard normal Z


@dataclass(frozen=True)
class GaussianHeads:
    """The fitted distribution.

    Args:
        centre: Subtracted from the features.
        scale: Divides them.
        mean: Weights of the mean, intercept last.
        log_sd: Weights of the logarithm of the standard deviation, intercept last.
        log_sd_range: Smallest and largest value that the second head gave where it was fitted; others are cut to it.
    """

    centre: Float[Tensor, " dim"]
    scale: Float[Tensor, " dim"]
    mean: Float[Tensor, " dim_and_one"]
    log_sd: Float[Tensor, " dim_and_one"]
    log_sd_range: tuple[float, float]

    def standardise(self, features: Float[Tensor, "n dim"], values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return (value - mean) / standard deviation.

        Raises:
            InputError: another number of features than was fitted.
        """
        if features.shape[1] != len(self.centre):
            raise InputError(
                f"The regression was fitted on {len(self.centre)} features but is given {features.shape[1]}; use the "
                "embedding of the same model."
            )
        x = (features.double() - self.centre) / self.scale
        mean, log_sd = (x @ w[:-1] + w[-1] for w in (self.mean, self.log_sd))
        return (values.double() - mean) / log_sd.clamp(*self.log_sd_range).exp()


def ridge_by_leave_one_out(
    features: Float[Tensor, "n dim"], targets: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " dim_and_one"], Float[Tensor, " n"]]:
    """Return ridge weights with a free intercept (last), and every record's prediction by a fit without it.

    The penalty is the one of the smallest leave-one-out error, which the hat matrix gives without refitting: the
    residual of record i left out is r_i / (1 - h_ii).

    Args:
        features: Centred columns.
        targets: One number a record.

    Example:
        >>> x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
        >>> weights, _ = ridge_by_leave_one_out(x, 2 * x[:, 0] + 5)
        >>> [round(float(w), 2) for w in weights]
        [2.0, 5.0]
    """
    n, middle = len(targets), targets.mean()
    u, s, vh = torch.linalg.svd(features, full_matrices=False)
    projected = u.T @ (targets - middle)
    fits: list[tuple[float, Tensor, Tensor]] = []
    for penalty in PENALTIES:
        shrink = s.square() / (s.square() + n * penalty)
        leverage = (u.square() @ shrink + 1 / n).clamp_max(1 - 1e-6)
        residual = targets - middle - u @ (shrink * projected)
        left_out = residual / (1 - leverage)
        weights = vh.T @ (projected * s / (s.square() + n * penalty))
        fits.append((float(left_out.square().mean()), torch.cat([weights, middle.view(1)]), targets - left_out))
    _, weights, predicted = min(fits, key=lambda fit: fit[0])
    return weights, predicted


def fit_gaussian_heads(features: Float[Tensor, "n dim"], values: Float[Tensor, " n"]) -> GaussianHeads:
    """Fit both heads by ridge regression: the mean, then the logarithm of the absolute leave-one-out residuals.

    For a normal distribution E log|residual| = log sd - 0.635, so the second regression estimates the log standard
    deviation up to a known constant.

    Args:
        features: One row a record, at least two.
        values: What is to be predicted.

    Raises:
        InputError: fewer than two records.
    """
    if len(values) < 2:
        raise InputError(f"A mean and a standard deviation need at least 2 records, not {len(values)}.")
    x = features.double()
    centre, scale = x.mean(0), x.std(0)
    scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
    x = (x - centre) / scale
    mean, predicted = ridge_by_leave_one_out(x, values.double())
    residual = (values.double() - predicted).abs()
    # A residual of zero has no logarithm; far below the typical one its exact size says nothing.
    floor = max(1e-3 * float(residual.median()), 1e-12)
    log_sd, fitted = ridge_by_leave_one_out(x, residual.clamp_min(floor).log() - _MEAN_LOG_ABS_NORMAL)
    return GaussianHeads(centre, scale, mean, log_sd, (float(fitted.min()), float(fitted.max())))
