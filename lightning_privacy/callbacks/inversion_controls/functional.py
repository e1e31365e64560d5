"""What the controls compute, as pure functions."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["keep_largest", "kept_count", "matched_width", "standardised", "unit_norm_filters"]

SMALLEST_STD = 1e-4  # chosen here: a picture of one colour has rounding errors alone, which must not become its content


def standardised(images: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
    """Give each record mean 0 and variance 1 over all of its numbers: its brightness and contrast are gone.

    Args:
        images: Records of any shape, such as (channels, height, width).

    Returns:
        The same shape; zeros for a record of one colour.

    Example:
        >>> standardised(torch.tensor([[1.0, 3.0]])).tolist()
        [[-1.0, 1.0]]
    """
    rows = images.flatten(1).to(torch.promote_types(images.dtype, torch.float32))
    centred = rows - rows.mean(1, keepdim=True)
    # The variance over n, not n - 1: a record is all there is, not a sample.
    std = centred.square().mean(1, keepdim=True).clamp_min(SMALLEST_STD**2).sqrt()
    return (centred / std).view(images.shape).to(images.dtype)


def kept_count(fraction: float | int, numbers: int) -> int:
    """Return how many of a record's numbers a fraction means: rounded, at least one.

    Example:
        >>> kept_count(0.1, 64), kept_count(1e-9, 64)
        (6, 1)
    """
    return max(1, round(fraction * numbers))


def keep_largest(
    hidden: Float[Tensor, " batch *shape"], fraction: float | int, by: str = "magnitude"
) -> Float[Tensor, " batch *shape"]:
    """Keep the largest activations of each record and set all others to zero.

    Args:
        hidden: Activations, one entry of the first dimension a record.
        fraction: Share that is kept, above 0 and at most 1; exactly `kept_count` of them, ties broken by place.
        by: ``magnitude``, the largest absolute values, or ``value``, the largest values.

    Returns:
        The same shape; gradients pass through what is kept alone.

    Example:
        >>> keep_largest(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), 0.5).tolist()
        [[0.0, -3.0, 2.0, 0.0]]
    """
    rows = hidden.flatten(1)
    ranked = rows.detach().abs() if by == "magnitude" else rows.detach()
    places = ranked.topk(kept_count(fraction, rows.shape[1]), dim=1).indices
    kept = torch.zeros_like(rows, dtype=torch.bool).scatter(1, places, True)
    return rows.where(kept, rows.new_zeros(())).view(hidden.shape)


def unit_norm_filters(weight: Float[Tensor, " filters *kernel"]) -> Float[Tensor, " filters *kernel"]:
    """Scale each filter to Euclidean norm 1.

    Args:
        weight: Filters of any shape, none of them zero.

    Example:
        >>> unit_norm_filters(torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    norms = weight.flatten(1).norm(dim=1)
    return weight / norms.view(-1, *[1] * (weight.ndim - 1))


def matched_width(active: float | int, positions: int) -> int:
    """Return the width of a dense bottleneck that passes as many numbers as a sparse code has active ones.

    Args:
        active: Non-zero numbers of a sparse code, on average a picture.
        positions: Places of the map at the tap, height times width.

    Returns:
        Channels, at least 1.

    Example:
        >>> matched_width(2_300, 32 * 32)
        2
    """
    return max(1, round(active / positions))
