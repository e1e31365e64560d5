"""Resizing a picture into a square with nothing cut off and nothing stretched."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["letterbox_masks", "letterbox_picture"]

GREY = 0.5
"""What fills the rest of the square, right and below."""


def _inside(height: int, width: int, size: int) -> tuple[int, int, float]:
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale)), scale


def letterbox_picture(image: Float[Tensor, "3 height width"], size: int) -> tuple[Float[Tensor, "3 size size"], float]:
    """Resize a picture so that its longer side fills a square; grey fills the rest.

    Args:
        image: Values in [0, 1].
        size: Side of the square in pixels.

    Returns:
        The square, and the factor by which positions in pixels are multiplied.

    Example:
        >>> square, scale = letterbox_picture(torch.zeros(3, 4, 8), 16)
        >>> square.shape, scale, square[0, :, 0].tolist()[7:9]
        (torch.Size([3, 16, 16]), 2.0, [0.0, 0.5])
    """
    high, wide, scale = _inside(image.shape[1], image.shape[2], size)
    resized = F.interpolate(image[None], (high, wide), mode="bilinear", antialias=True, align_corners=False)[0]
    square = torch.full((image.shape[0], size, size), GREY, dtype=image.dtype)
    square[:, :high, :wide] = resized.clamp(0, 1)
    return square, scale


def letterbox_masks(masks: UInt8[Tensor, "n height width"], size: int) -> UInt8[Tensor, "n size size"]:
    """Do to masks of 0 and 1 what `letterbox_picture` does to their picture; zero fills the rest.

    Args:
        masks: One an object.
        size: Side of the square in pixels.
    """
    high, wide, _ = _inside(masks.shape[1], masks.shape[2], size)
    square = torch.zeros(len(masks), size, size, dtype=torch.uint8)
    if len(masks):
        square[:, :high, :wide] = F.interpolate(masks[:, None].float(), (high, wide), mode="nearest")[:, 0].byte()
    return square
