r"""The mathematics of NoPeek (arXiv 2008.09161, Vepakomma et al.), as pure functions.

| symbol | here | meaning |
|---|---|---|
| ``X``, ``Z`` | ``first``, ``second`` | a batch of n inputs, and what a layer computes of them |
| ``A``, ``B`` | ``a``, ``b`` | their distances, double-centred: ``A = H D H`` |
| ``dCov^2(X, Z)`` | | ``sum_ij A_ij B_ij / n^2`` |
| ``dCor(X, Z)`` | `distance_correlation` | ``sqrt(dCov^2(X, Z) / sqrt(dCov^2(X, X) dCov^2(Z, Z)))`` |
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.core.pairwise import double_centred, pairwise_distances

__all__ = ["distance_correlation"]

# chosen here: below it float32 has no digit of a distance covariance left, and the root's derivative is noise
TINY = 1e-12


def distance_correlation(first: Float[Tensor, "n ..."], second: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """Return the sample distance correlation of two variables.

    Args:
        first: One record a row; further dimensions are flattened.
        second: The same records' other variable, of any number of dimensions.

    Returns:
        A number from 0 to 1; 1 where one is a rotated, shifted and scaled copy of the other. Independent variables give
        more than 0 on few records, and near 1 where both have many dimensions. 0, with gradient 0, where one of them is
        the same for all records.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [4.0]])
        >>> round(distance_correlation(x, 3 - 2 * x).item(), 4)
        1.0
        >>> round(distance_correlation(x, torch.tensor([[1.0], [0.0], [1.0]])).item(), 4)
        0.543

    Source:
        Szekely, Rizzo, Bakirov, Annals of Statistics 35 (2007), definition 5 (the V-statistic); arXiv 2008.09161 adds it
        to the loss.
    """
    a, b = double_centred(pairwise_distances(first)), double_centred(pairwise_distances(second))
    covariance = (a * b).mean()
    spread = a.square().mean() * b.square().mean()
    # Two `where`s: the derivative of a root at 0 is infinite, and times 0 it would still be NaN.
    varies = (spread > TINY**2) & (covariance > TINY)
    ratio = torch.where(varies, covariance, 1.0) / torch.where(varies, spread, 1.0).sqrt()
    return torch.where(varies, ratio.sqrt(), 0.0)
