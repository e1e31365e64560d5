r"""The mathematics of BiDO-HSIC (arXiv 2206.05483, Peng et al., KDD 2022), as pure functions.

| symbol | here | meaning |
|---|---|---|
| ``X`` | ``pictures`` | a batch of n inputs |
| ``Y`` | ``labels`` | their classes |
| ``Z_j`` | ``taps`` | what hidden layer j computes of them |
| ``K`` | `gaussian_kernel`, `label_kernel` | kernel matrix of a batch, n by n |
| ``H`` | `double_centred` | ``I - 11^T / n`` |
| ``R`` | `normalised` | ``HKH (HKH + epsilon n I)^-1`` |
| ``HSIC(A, B)`` | `normalised_hsic` | ``tr(R_A R_B)`` |
| ``lambda_x``, ``lambda_y`` | the same | weights of the two sums |
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.core.pairwise import double_centred, squared_distances

__all__ = ["bido_terms", "gaussian_kernel", "label_kernel", "normalised", "normalised_hsic"]

EPSILON = 1e-5  # the released code


def gaussian_kernel(rows: Float[Tensor, "n ..."], sigma: float | int) -> Float[Tensor, "n n"]:
    """Return ``exp(-|x_i - x_j|^2 / (2 sigma^2 d)) - 1``, d the numbers a record.

    The constant vanishes when the matrix is centred; without it, kernels near 1 keep their digits.

    Args:
        rows: Records; further dimensions are flattened.
        sigma: Width, above 0; the squared width grows with d, as in the released code.

    Example:
        >>> round(gaussian_kernel(torch.tensor([[0.0], [5.0]]), 5.0)[0, 1].item() + 1, 4)
        0.6065
    """
    return torch.expm1(-squared_distances(rows) / (2 * sigma**2 * rows.flatten(1).shape[1]))


def label_kernel(labels: Int[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Return 1 where two records share a class and 0 elsewhere: the linear kernel of one-hot labels.

    Args:
        labels: Classes, numbered in any way.

    Example:
        >>> label_kernel(torch.tensor([7, 7, 2])).sum(1).tolist()
        [2.0, 2.0, 1.0]
    """
    return (labels[:, None] == labels[None, :]).float()


def normalised(kernel: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return ``R = HKH (HKH + epsilon n I)^-1``, whose eigenvalues lie from 0 to 1.

    Args:
        kernel: A symmetric positive semi-definite matrix, up to a constant.

    Example:
        >>> round(normalised(torch.eye(3)).trace().item(), 2)
        2.0
    """
    centred = double_centred(kernel)
    n = len(centred)
    ridge = EPSILON * n * torch.eye(n, dtype=centred.dtype, device=centred.device)
    return torch.linalg.solve(centred + ridge, centred)  # the factors commute


def normalised_hsic(first: Float[Tensor, "n n"], second: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Return ``tr(R_1 R_2)``, the normalised (canonical-correlation type) HSIC of two variables.

    Args:
        first: Kernel matrix of one variable on a batch of n records.
        second: Kernel matrix of the other on the same records.

    Returns:
        A number from 0 to n - 1. It is a statistic of the batch: without any dependence it is ``tr R_1 tr R_2 / (n - 1)``
        on average, far from 0 where the kernels tell most records of a small batch apart. A single record gives 0.

    Example:
        >>> kernel = label_kernel(torch.tensor([0, 0, 1, 1]))
        >>> round(normalised_hsic(kernel, kernel).item(), 2)
        1.0

    Source:
        The normalised cross-covariance of Fukumizu et al. (NIPS 2007), as BiDO's released code estimates it with
        ``R = KH (KH + epsilon n I)^-1``; the trace of the product is the same.
    """
    return (normalised(first) * normalised(second).T).sum()


def bido_terms(
    pictures: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    taps: Sequence[Float[Tensor, "n ..."]],
    sigma: float | int = 5.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return ``sum_j HSIC(X, Z_j)`` and ``sum_j HSIC(Z_j, Y)``.

    Args:
        pictures: Inputs.
        labels: Classes.
        taps: Hidden layers' outputs, of any shapes.
        sigma: Width of the Gaussian kernels of pictures and taps.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> dependent, informative = bido_terms(x, torch.tensor([0, 0, 1, 1]), [2 * x])
        >>> round(dependent.item(), 2), round(informative.item(), 2)
        (2.3, 0.99)

    Source:
        arXiv 2206.05483, the two sums of BiDO's objective; kernels as in the released code.
    """
    of_pictures, of_labels = gaussian_kernel(pictures, sigma), label_kernel(labels)
    x, y = pictures.new_zeros(()), pictures.new_zeros(())
    for tap in taps:
        of_tap = gaussian_kernel(tap, sigma)
        x, y = x + normalised_hsic(of_pictures, of_tap), y + normalised_hsic(of_tap, of_labels)
    return x, y
