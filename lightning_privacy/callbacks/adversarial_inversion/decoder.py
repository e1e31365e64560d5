"""The decoder that is trained beside the model: from any layer's output back to the pictures."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["InversionDecoder"]


class InversionDecoder(nn.Module):
    """Guess pictures from what a layer computed of them.

    Maps stay maps; anything else is flattened and laid out at a quarter of the picture's side. The input is divided by
    its root mean square, record by record, and the logarithm of that size is an input of its own: otherwise the model
    could blind the decoder by shrinking the layer, which hides nothing.

    Args:
        tap_shape: Shape of the layer's output, without the batch.
        image_shape: Channels, height and width of the pictures.
        width: Channels inside.

    Example:
        >>> decoder = InversionDecoder((8, 4, 4), (3, 8, 8), width=4)
        >>> decoder(torch.ones(2, 8, 4, 4)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, tap_shape: Sequence[int], image_shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        self.image_size, self.width = tuple(image_shape[1:]), width
        self.is_map = len(tap_shape) == 3
        quarter = [math.ceil(side / 4) for side in self.image_size]
        self.start = tuple(tap_shape[1:]) if self.is_map else tuple(quarter)
        self.inward = (
            nn.Conv2d(tap_shape[0] + 1, width, 3, padding=1)
            if self.is_map
            else nn.Linear(math.prod(tap_shape) + 1, width * math.prod(quarter))
        )
        # Two residual blocks, of which the second sees the picture's own resolution.
        self.low, self.high = _block(width), _block(width)
        self.outward = nn.Conv2d(width, image_shape[0], 3, padding=1)

    def forward(self, tap: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch channels height width"]:
        """Return pictures in (0, 1)."""
        flat = tap.flatten(1)
        size = (flat.square().mean(1, keepdim=True) + 1e-12).sqrt()
        if self.is_map:
            shape = (-1, 1, 1, 1)
            place = size.log().view(shape).expand(-1, 1, *self.start)
            hidden = self.inward(torch.cat([tap / size.view(shape), place], 1))
        else:
            hidden = self.inward(torch.cat([flat / size, size.log()], 1)).view(-1, self.width, *self.start)
        hidden = hidden + self.low(hidden)
        # Nearest, because the gradient of smoother interpolation is not deterministic on GPUs.
        hidden = F.interpolate(hidden, self.image_size, mode="nearest")
        return self.outward(F.relu(hidden + self.high(hidden))).sigmoid()


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
    )
