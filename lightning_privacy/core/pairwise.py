"""Distances between all pairs of a batch, whose gradient is finite everywhere."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["double_centred", "pairwise_distances", "squared_distances"]


def squared_distances(rows: Float[Tensor, "n ..."]) -> Float[Tensor, "n n"]:
    """Return ``D_ij = |x_i - x_j|^2``, at least 0, with a diagonal of zeros.

    Args:
        rows: Records; further dimensions are flattened.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist()
        [[0.0, 25.0], [25.0, 0.0]]
    """
    # By the Gram matrix: `torch.cdist` allocates n * n * dim numbers in its backward pass. Distances do not change when
    # the mean is taken off, and what is subtracted below is then small against rounding.
    flat = rows.flatten(1)
    flat = flat - flat.mean(0)
    gram = flat @ flat.T
    norms = gram.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0)
    return distances * (1 - torch.eye(len(flat), dtype=flat.dtype, device=flat.device))


def pairwise_distances(rows: Float[Tensor, "n ..."]) -> Float[Tensor, "n n"]:
    """Return ``d_ij = |x_i - x_j|``; where two records are equal, the gradient is 0 instead of infinite.

    Args:
        rows: Records; further dimensions are flattened.

    Example:
        >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))[0, 1].item()
        5.0
    """
    squared = squared_distances(rows)
    apart = squared > 0
    # The outer `where` alone would multiply an infinite derivative by 0.
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def double_centred(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return ``H M H`` with ``H = I - 11^T / n``: rows and columns have mean 0.

    Args:
        matrix: Any square matrix.

    Example:
        >>> double_centred(torch.eye(2)).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    rows = matrix - matrix.mean(0, keepdim=True)
    return rows - rows.mean(1, keepdim=True)
