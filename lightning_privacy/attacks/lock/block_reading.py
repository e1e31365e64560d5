"""First layers that read whole blocks of pixels: their weights, and pictures as such a layer would want them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.editors.blocks import from_blocks, to_blocks

__all__ = ["LARGEST", "block_weights", "shown_blocks"]

LARGEST = 2**14
"""Values of a block beyond which it is not read: the square of their number is computed."""


def block_weights(network: nn.Module, images: Float[Tensor, "n channels height width"]) -> tuple[Tensor, int] | None:
    """Return the weights of a network's first layer if it reads whole blocks of pixels, and the block's side.

    Args:
        network: Pictures -> class scores.
        images: A few pictures, to see what the layers are given.

    Returns:
        A row of weights a value of the block, in the order of `to_blocks`; None where the first layer is another.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.Flatten(), nn.Linear(20, 2))
        >>> weights, side = block_weights(net, torch.zeros(1, 3, 8, 8))
        >>> weights.shape, side
        (torch.Size([48, 5]), 4)
    """
    first: list[tuple[Tensor, int]] = []
    channels, height, width = images.shape[1:]

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Conv2d):
            side = layer.kernel_size[0]
            whole = layer.kernel_size == layer.stride == (side, side) and side > 1 and layer.groups == 1
            seen.append(layer)
            if len(seen) == 1 and whole and layer.in_channels == channels:
                first.append((layer.weight.detach().flatten(1).T, side))
        elif isinstance(layer, nn.Linear):
            seen.append(layer)
            if len(seen) == 1 and height == width and given[0].flatten(1).shape[1] == channels * height * width:
                first.append((layer.weight.detach().T, height))

    seen: list[nn.Module] = []
    hooks = [layer.register_forward_pre_hook(look) for layer in network.modules()]
    try:
        with torch.no_grad():
            network(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return first[0] if first and len(first[0][0]) <= LARGEST else None


def shown_blocks(
    images: Float[Tensor, "n channels height width"], places: Float[Tensor, "values 2"], side: int
) -> Float[Tensor, "n channels height width"]:
    """Return pictures whose blocks hold, value by value, what lies at the places in the raw block.

    Args:
        images: Raw pictures.
        places: For each value of a block where it is taken from, y and x from -1 to 1; the mean of the channels there.
        side: Of a block.

    Example:
        >>> corner = torch.full((16, 2), -0.75)
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> shown_blocks(x, corner, 4).unique().tolist()
        [0.0]
    """
    rows = to_blocks(images, side)
    n, blocks, values = rows.shape
    cut = rows.reshape(n * blocks, images.shape[1], side, side).mean(1, keepdim=True)
    grid = places.flip(1)[None, None].expand(len(cut), 1, values, 2)  # grid_sample wants x before y
    taken = F.grid_sample(cut, grid.to(cut), padding_mode="border", align_corners=False)
    return from_blocks(taken.reshape(n, blocks, values), (images.shape[-2], images.shape[-1]), side)
