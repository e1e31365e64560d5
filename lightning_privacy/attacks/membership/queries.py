"""Augmented copies of a record: what a classifier says of its mirror image and of small shifts betrays it as well."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["MOST_QUERIES", "query_views"]

# Mirrored or not, each shifted by at most one pixel in steps of the eight neighbours: the raw picture comes first, its
# mirror image second, as in the attacks of arXiv 2112.03570 with 1, 2 and 18 queries.
_SHIFTS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
_VIEWS = tuple((shift, mirrored) for shift in _SHIFTS for mirrored in (False, True))
MOST_QUERIES = len(_VIEWS)
"""As many different views as there are."""


def query_views(
    images: Float[Tensor, "batch channels height width"], queries: int
) -> list[Float[Tensor, "batch channels height width"]]:
    """Return the pictures as they are, then mirrored, then shifted by a pixel with the border repeated.

    Args:
        images: The pictures.
        queries: How many views, 1 to 18.

    Raises:
        InputError: another number of views.
    """
    if not 1 <= queries <= MOST_QUERIES:
        raise InputError(f"A record can be queried in 1 to {MOST_QUERIES} views, not {queries}.")
    return [_view(images, *shift, mirrored) for shift, mirrored in _VIEWS[:queries]]


def _view(images: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    if down or right:
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        images = padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
    return images.flip(3) if mirrored else images
