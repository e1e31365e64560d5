"""A network whose first layer reads whole blocks of pixels, for which their order within a block is nothing."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.small_cnn import check_size

__all__ = ["BlockMLP"]


class BlockMLP(nn.Module):
    """One linear map for all blocks, as in the patch embedding of a vision transformer, then two linear layers.

    Pictures whose values are shuffled within blocks by one order are as easy for it as the pictures themselves: the order
    is taken up by the first layer. A convolution, which looks for neighbours, finds less in them.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        image_size: Side of the pictures in pixels.
        block: Side of a block in pixels, which must divide the pictures' side; None makes the whole picture one block.
        width: Numbers that a block becomes.
        hidden: Width of the layer between.
        dropout: Share of values left out in training, 0 to below 1.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> import torch
        >>> net = BlockMLP(classes=10, channels=1, image_size=8, width=4, hidden=16).eval()
        >>> net(torch.zeros(2, 1, 8, 8)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 10]), 518)
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        image_size: int,
        block: int | None = None,
        width: int = 64,
        hidden: int = 256,
        dropout: float | int = 0.2,
    ) -> None:
        super().__init__()
        side = image_size if block is None else block
        if side < 1 or image_size % side or min(width, hidden) < 1 or not 0 <= dropout < 1:
            raise InputError(
                f"`block_mlp`: pictures of {image_size} pixels, `block` {block}, `width` {width}, `hidden` {hidden}, `dropout` "
                f"{dropout}. The block must divide the pictures' side, widths are at least 1, and dropout is below 1."
            )
        self.image_size, self.dropout = image_size, float(dropout)
        values = (image_size // side) ** 2 * width
        self.blocks = nn.Conv2d(channels, width, side, stride=side)
        self.norm = nn.LayerNorm(values)
        self.between = nn.Linear(values, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        check_size("block_mlp", self.image_size, images)
        hidden = F.gelu(self.norm(self.blocks(images - 0.5).flatten(1)))
        hidden = F.gelu(self.between(F.dropout(hidden, self.dropout, self.training)))
        return self.head(F.dropout(hidden, self.dropout, self.training))
