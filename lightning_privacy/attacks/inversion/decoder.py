"""The network that turns what left a model back into pictures; its shape depends on the tap's shape and on nothing else."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError

__all__ = ["InversionNetwork", "map_shape"]

_SMALL_PICTURE = 16  # pixels; below, a quarter of the side would leave no map
_VECTOR_WIDTH = 32  # channels that a vector is laid out with; chosen here
_SLOPE = 0.1


def map_shape(tap_shape: Sequence[int], image_size: Sequence[int]) -> tuple[int, int, int] | None:
    """Return a tap's channels, height and width where it still says where things are, else None.

    A transformer's (tokens, channels) is a map where the tokens form a square. A map coarser than an eighth of the picture
    is read as a vector: by then each site has seen the whole picture.

    Args:
        tap_shape: Shape without the batch.
        image_size: Height and width of the pictures.

    Example:
        >>> map_shape((16, 8, 8), (32, 32)), map_shape((64, 192), (32, 32)), map_shape((256, 2, 2), (32, 32))
        ((16, 8, 8), (192, 8, 8), None)
    """
    if len(tap_shape) == 3:
        channels, height, width = tap_shape
    elif len(tap_shape) == 2 and math.isqrt(tap_shape[0]) ** 2 == tap_shape[0] > 1:
        height = width = math.isqrt(tap_shape[0])
        channels = tap_shape[1]
    else:
        return None
    coarse = min(height / image_size[0], width / image_size[1]) < 1 / 8
    return None if coarse else (channels, height, width)


class InversionNetwork(nn.Module):
    """Guess pictures from a standardised tap.

    Maps are folded, losslessly, onto a grid of a quarter of the picture's side, vectors are laid out on it; residual blocks
    run there, and sub-pixel convolutions lead up to the picture. A direct path without any non-linearity runs beside them,
    so that a tap that is nearly linear in the picture is undone at once. The bias of the output is a picture of its own.

    Args:
        tap_shape: Shape of the tap, without the batch.
        image_shape: Channels, height and width of the pictures.
        width: Channels on the grid.
        blocks: Residual blocks on the grid.

    Raises:
        InputError: the tap is a single number or the picture has fewer than 4 pixels a side.

    Example:
        >>> network = InversionNetwork((8, 16, 16), (3, 32, 32), width=8, blocks=1)
        >>> network(torch.zeros(2, 8, 16, 16)).shape
        torch.Size([2, 3, 32, 32])

    Source:
        Trained inversion networks: He, Zhang and Lee, ACSAC 2019; Yang et al., CCS 2019. Sub-pixel convolution:
        arXiv 1609.05158.
    """

    def __init__(
        self,
        tap_shape: Sequence[int],
        image_shape: tuple[int, int, int],
        width: int = 48,  # chosen here: 0.2 to 0.8 million weights on 32-pixel pictures
        blocks: int = 2,
    ) -> None:
        super().__init__()
        channels, height, across = image_shape
        if not tap_shape or min(tap_shape) < 1 or min(height, across) < 4:
            raise InputError(
                f"A decoder needs a tap with at least one dimension and pictures of at least 4 pixels a side, but got a tap of "
                f"shape {tuple(tap_shape)} and pictures of {height} by {across}."
            )
        self.image_shape = image_shape
        ups = 2 if min(height, across) >= _SMALL_PICTURE else 1
        self.grid = math.ceil(height / 2**ups), math.ceil(across / 2**ups)
        self.map = map_shape(tap_shape, (height, across))
        self.tokens = self.map is not None and len(tap_shape) == 2
        sites, pixels = self.grid[0] * self.grid[1], channels * 4**ups
        if self.map is not None:
            self.fold = max(math.ceil(self.map[1] / self.grid[0]), math.ceil(self.map[2] / self.grid[1]))
            deep = self.map[0] * self.fold**2
            self.enter: nn.Module = nn.Conv2d(deep, width, 3, padding=1)
            self.direct: nn.Module = nn.Conv2d(deep, pixels, 3, padding=1)
        else:
            self.fold = 1
            units = math.prod(tap_shape)
            laid_out = nn.Unflatten(1, (_VECTOR_WIDTH, *self.grid))
            self.enter = nn.Sequential(
                nn.Linear(units, _VECTOR_WIDTH * sites), laid_out, nn.Conv2d(_VECTOR_WIDTH, width, 3, padding=1)
            )
            self.direct = nn.Sequential(nn.Linear(units, pixels * sites), nn.Unflatten(1, (pixels, *self.grid)))
        self.body = nn.Sequential(*(_Residual(width) for _ in range(blocks)))
        inside = max(width // 2, 8)
        last = nn.Conv2d(inside, channels * 4 ** (ups - 1), 3, padding=1)
        # No layer runs at the picture's own resolution: it would cost as much as all others, for 0.2 dB.
        self.rise = nn.Sequential(
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(width, inside * 4, 3, padding=1),
            nn.PixelShuffle(2),
            _Residual(inside),
            nn.LeakyReLU(_SLOPE),
            last,
            nn.PixelShuffle(2 ** (ups - 1)),
        )
        self.ups = ups
        self.bias = nn.Parameter(torch.zeros(1, *image_shape))

    def start_at(self, picture: Float[Tensor, "channels height width"]) -> None:
        """Make a picture the output where nothing is known: the mean of the attacker's own.

        Args:
            picture: Values in [0, 1].
        """
        with torch.no_grad():
            self.bias.copy_(picture.clamp(0.01, 0.99).logit())

    def forward(self, tap: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch channels height width"]:
        """Return pictures in (0, 1)."""
        read = self._folded(tap)
        direct = F.pixel_shuffle(self.direct(read), 2**self.ups)
        hidden = self.rise(self.body(self.enter(read)))
        _, height, across = self.image_shape
        return ((direct + hidden)[..., :height, :across] + self.bias).sigmoid()

    def _folded(self, tap: Tensor) -> Tensor:
        if self.map is None:
            return tap.flatten(1)
        found = tap.transpose(1, 2).unflatten(2, self.map[1:]) if self.tokens else tap
        right, below = -found.shape[3] % self.fold, -found.shape[2] % self.fold
        folded = F.pixel_unshuffle(F.pad(found, (0, right, 0, below)), self.fold)
        # Nearest, because the gradient of smoother interpolation is not deterministic on GPUs.
        return folded if folded.shape[2:] == self.grid else F.interpolate(folded, self.grid, mode="nearest")


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), nothing at first: no normalisation is needed, so that batches do not matter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.leaky_relu(self.first(F.leaky_relu(x, _SLOPE)), _SLOPE))
