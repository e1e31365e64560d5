"""Random crops, enlarged back to the picture's size: what makes a reconstruction robust, and tells it from a fluke."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["random_resized_crops"]


def random_resized_crops(
    pictures: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    area: tuple[float | int, float | int] = (0.9, 1),  # PPA, arXiv 2201.12179
) -> Float[Tensor, "n channels height width"]:
    """Return a random crop of each picture, enlarged to its size by linear interpolation.

    Interpolation is written as two products with matrices, whose gradients are deterministic on every device.

    Args:
        pictures: Values in [0, 1].
        generator: On the CPU.
        area: Smallest and largest share of the area that is kept, in (0, 1].

    Raises:
        InputError: the shares are no such interval.

    Example:
        >>> x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(random_resized_crops(x, torch.Generator(), (1, 1)), x, atol=1e-6)
        True
    """
    low, high = area
    if not 0 < low <= high <= 1:
        raise InputError(f"Crops keep a share of the area in (0, 1], smallest first, but got {area}.")
    n = len(pictures)
    kept, down, across = torch.rand(3, n, generator=generator)
    share = (low + (high - low) * kept).sqrt()
    rows = _resampling(pictures.shape[2], share, down).to(pictures)
    columns = _resampling(pictures.shape[3], share, across).to(pictures)
    return torch.einsum("nhi,ncij,nwj->nchw", rows, pictures, columns)


def _resampling(side: int, share: Float[Tensor, " n"], place: Float[Tensor, " n"]) -> Float[Tensor, "n side side"]:
    pixel = torch.arange(side, dtype=torch.float32)
    first = place * (1 - share) * side
    source = first[:, None] + (pixel + 0.5) * share[:, None] - 0.5
    return (1 - (source.clamp(0, side - 1)[:, :, None] - pixel).abs()).clamp_min(0)
