"""A small network from a code to a picture, for attacks that search among its outputs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PictureDecoder"]


class PictureDecoder(nn.Module):
    """One linear layer and three 3 by 3 convolutions, with two doublings of the side in between.

    Args:
        image_shape: Channels, height and width of the pictures.
        code: Length of the code.
        width: Channels of the hidden convolutions.

    Example:
        >>> PictureDecoder((3, 30, 32))(torch.zeros(2, 64)).shape
        torch.Size([2, 3, 30, 32])
    """

    def __init__(self, image_shape: tuple[int, int, int], code: int = 64, width: int = 32) -> None:
        super().__init__()
        self.image_shape, self.code, self.width = image_shape, code, width
        self.quarter = (-(-image_shape[1] // 4), -(-image_shape[2] // 4))
        self.first = nn.Linear(code, width * self.quarter[0] * self.quarter[1])
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, image_shape[0], 3, padding=1)

    def forward(self, codes: Float[Tensor, "batch code"]) -> Float[Tensor, "batch channels height width"]:
        """Return pictures in (0, 1)."""
        hidden = F.silu(self.first(codes)).reshape(-1, self.width, *self.quarter)
        # Repeating pixels has a deterministic gradient on GPUs, where interpolation has none.
        for conv in (self.conv1, self.conv2):
            hidden = hidden.repeat_interleave(2, -1).repeat_interleave(2, -2)
            hidden = F.silu(conv(hidden))
        return torch.sigmoid(self.last(hidden))[..., : self.image_shape[1], : self.image_shape[2]]
