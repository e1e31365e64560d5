"""Before reconstructions are compared with the truth: the right order of a batch, and the brightness that is free."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["affine_aligned", "best_order"]

Pictures = Float[Tensor, "n channels height width"]


def best_order(found: Pictures, truth: Pictures) -> Int[Tensor, " n"]:
    """Return which reconstruction belongs to which record, so that the sum of squared errors is smallest.

    An update does not depend on the order of its batch, so that no attack can know it.

    Args:
        found: Reconstructions.
        truth: The records.

    Returns:
        Rows of ``found`` in the order of ``truth``.

    Example:
        >>> truth = torch.arange(3.0).reshape(3, 1, 1, 1)
        >>> best_order(truth[[2, 0, 1]], truth).tolist()
        [1, 2, 0]
    """
    from scipy.optimize import linear_sum_assignment

    distance = torch.cdist(truth.flatten(1).double(), found.flatten(1).double()).square()
    return torch.as_tensor(linear_sum_assignment(distance.cpu().numpy())[1])


def affine_aligned(found: Pictures, truth: Pictures) -> Pictures:
    """Return reconstructions with the brightness and contrast of each channel fitted to the truth.

    Batch normalisation of a single picture removes both before the update is made, so that no attack can know them. What is
    aligned has a high floor on pictures of low contrast: show the alignment of a failed attack beside it.

    Args:
        found: Reconstructions, each in the row of its record.
        truth: The records, in [0, 1].

    Returns:
        Least-squares fits, clipped to [0, 1].

    Example:
        >>> truth = torch.rand(1, 1, 4, 4)
        >>> bool(torch.allclose(affine_aligned(0.2 - 0.1 * truth, truth), truth, atol=1e-4))
        True
    """
    a, b = found.double(), truth.double()
    centred = a - a.mean((2, 3), keepdim=True)
    spread = centred.square().sum((2, 3), keepdim=True)
    slope = (centred * b).sum((2, 3), keepdim=True) / spread.clamp_min(1e-12)
    return (slope * centred + b.mean((2, 3), keepdim=True)).clamp(0, 1).to(truth.dtype)
