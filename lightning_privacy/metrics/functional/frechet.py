r"""Distances between two sets of features: Frechet distance and kernel distance, in float64.

Frechet distance of two normal distributions (FID with Inception features, arXiv 1706.08500):
:math:`d^2 = |\mu_a - \mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^{1/2})`.

Kernel distance: unbiased MMD with :math:`k(x, y) = (\gamma x^T y + c)^3` (KID with Inception features,
arXiv 1801.01401).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["covariance_factor", "frechet_distance", "frechet_distance_of_moments", "kernel_distance"]


def _checked(features: Float[Tensor, "n dim"], least: int = 2) -> Float[Tensor, "n dim"]:
    if len(features) < least:
        raise InputError(
            f"A distance between feature sets needs at least {least} pictures a side, not {len(features)}."
        )
    if not features.isfinite().all():
        raise InputError("Features are not finite: a picture or the extractor's weights hold NaN or infinity.")
    return features.detach().double()


def frechet_distance(a: Float[Tensor, "n_a dim"], b: Float[Tensor, "n_b dim_b"]) -> float:
    """Return the squared Frechet distance between normal fits of two feature sets.

    With centred features ``X`` and ``Y`` (scaled by one over the square root of n - 1) the covariances are ``X'X`` and
    ``Y'Y``, and ``tr((S_a S_b)^(1/2))`` is the sum of the singular values of ``X Y'``: exact where there are fewer
    pictures than features, without a matrix square root that is singular there.

    Args:
        a: Features of one set, at least 2 rows. Covariances use n - 1.
        b: Features of the other set.

    Returns:
        The distance; biased upwards by small samples, so compare equal counts only.

    Raises:
        InputError: a set has fewer than two rows or is not finite.

    Example:
        >>> frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
        9.0
    """
    a, b = _checked(a), _checked(b)
    factors = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b)]
    return _distance(a.mean(0), factors[0], b.mean(0), factors[1])


def covariance_factor(covariance: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Return ``F`` with ``F'F = covariance``; negative eigenvalues are rounding and become zero."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return values.clamp_min(0).sqrt().unsqueeze(1) * vectors.T


def frechet_distance_of_moments(
    mean_a: Float[Tensor, " dim"],
    covariance_a: Float[Tensor, "dim dim"],
    mean_b: Float[Tensor, " dim_b"],
    covariance_b: Float[Tensor, "dim_b dim_b"],
) -> float:
    """Return the squared Frechet distance from means and covariances."""
    return _distance(mean_a.double(), covariance_factor(covariance_a), mean_b.double(), covariance_factor(covariance_b))


def _distance(
    mean_a: Float[Tensor, " dim"],
    factor_a: Float[Tensor, "n_a dim"],
    mean_b: Float[Tensor, " dim_b"],
    factor_b: Float[Tensor, "n_b dim_b"],
) -> float:
    if factor_a.shape[1] != factor_b.shape[1]:
        raise InputError(
            f"The two feature sets have {factor_a.shape[1]} and {factor_b.shape[1]} features; use one extractor."
        )
    cross = torch.linalg.svdvals(_square(factor_a) @ _square(factor_b).T).sum()
    spread = factor_a.square().sum() + factor_b.square().sum()
    # Rounding can leave equal sets at -1e-13.
    return max(0.0, float((mean_a - mean_b).square().sum() + spread - 2 * cross))


def _square(factor: Float[Tensor, "n dim"]) -> Float[Tensor, "rows dim"]:
    """Return a factor of the same covariance with at most ``dim`` rows, which bounds the cost of the product."""
    return factor if len(factor) <= factor.shape[1] else torch.linalg.qr(factor, mode="r").R


def kernel_distance(
    a: Float[Tensor, "n_a dim"],
    b: Float[Tensor, "n_b dim_b"],
    degree: int = 3,
    gamma: float | int | None = None,
    coef: float | int = 1,
) -> tuple[float, float]:
    """Return the unbiased squared MMD of two feature sets under a polynomial kernel, and its standard error.

    Args:
        a: Features of one set, at least 3 rows.
        b: Features of the other set.
        degree: Of the polynomial; 3 as in arXiv 1801.01401.
        gamma: Scale of the inner product; one over the number of features if None.
        coef: Constant inside the power.

    Returns:
        The estimate over all pictures (not over random subsets; it can be slightly negative when the sets are alike),
        and its jackknife standard error.

    Raises:
        InputError: a set has fewer than three rows or is not finite.
    """
    a, b = _checked(a, 3), _checked(b, 3)
    scale = 1 / a.shape[1] if gamma is None else float(gamma)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (scale * x @ y.T + coef) ** degree

    within = [kernel(x, x).fill_diagonal_(0).sum(1) for x in (a, b)]
    between = kernel(a, b)
    n, m = between.shape

    def estimate(sum_a: Tensor, n_a: int, sum_b: Tensor, n_b: int, sum_ab: Tensor) -> Tensor:
        return sum_a / (n_a * (n_a - 1)) + sum_b / (n_b * (n_b - 1)) - 2 * sum_ab / (n_a * n_b)

    total_a, total_b, total_ab = within[0].sum(), within[1].sum(), between.sum()
    value = estimate(total_a, n, total_b, m, total_ab)
    # Leave one picture out: its row and column leave the within-set sum, its row the between-set sum.
    without_a = estimate(total_a - 2 * within[0], n - 1, total_b, m, total_ab - between.sum(1))
    without_b = estimate(total_a, n, total_b - 2 * within[1], m - 1, total_ab - between.sum(0))
    variance = sum((k - 1) / k * (x - x.mean()).square().sum() for k, x in ((n, without_a), (m, without_b)))
    return float(value), float(torch.as_tensor(variance).sqrt())
