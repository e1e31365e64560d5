"""A network cut in three, as collaborative inference cuts it: client, server, classifier."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.small_cnn import check_size

__all__ = ["SplitCNN"]

SMALLEST = 16  # pixels; four halvings leave one


def _block(inputs: int, outputs: int, dropout: float, halve: bool) -> list[nn.Module]:
    pool = [nn.MaxPool2d(2)] if halve else []
    return [
        nn.Conv2d(inputs, outputs, 5, padding=2),
        nn.ReLU(),
        nn.Dropout(dropout),
        *pool,
        nn.BatchNorm2d(outputs),
    ]


class SplitCNN(nn.Module):
    """Five 5 by 5 convolutions and two linear layers, whose first two convolutions run on the client.

    What leaves the client is the output of ``first_part``; the features before the classifier are that of
    ``second_part``. It is the undefended network of the sparse-coding paper for pictures of 32 pixels.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        image_size: Side of the pictures in pixels, at least 16.
        width: Channels of the first convolution; each further one has twice as many.
        dropout: Of the convolutions, 0 to 1.

    Raises:
        InputError: The pictures are too small.

    Example:
        >>> import torch
        >>> net = SplitCNN(classes=10, channels=3, image_size=32)
        >>> net.first_part(torch.zeros(2, 3, 32, 32)).shape, net(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 32, 16, 16]), torch.Size([2, 10]))

    Source:
        Dibbo et al., ECCV 2024, arXiv 2403.14772, and its released code for CIFAR-10 and CelebA at 32 pixels.
    """

    def __init__(
        self, classes: int, channels: int, image_size: int, width: int = 16, dropout: float | int = 0.09
    ) -> None:
        super().__init__()
        if image_size < SMALLEST:
            raise InputError(
                f"`split_cnn` halves a picture four times and needs image_size >= {SMALLEST}, but was given {image_size}; "
                "enlarge the pictures, or take `small_cnn`."
            )
        self.image_size = image_size
        side, widths = image_size // 16, [width * 2**k for k in range(5)]
        self.first_part = nn.Sequential(
            *_block(channels, widths[0], dropout, halve=False), *_block(widths[0], widths[1], dropout, halve=True)
        )
        rest = [layer for a, b in pairwise(widths[1:]) for layer in _block(a, b, dropout, True)]
        self.second_part = nn.Sequential(*rest)
        # arXiv 2403.14772's code: 500 hidden units
        self.third_part = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * side * side, 500), nn.ReLU(), nn.Linear(500, classes)
        )

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        check_size("split_cnn", self.image_size, images)
        return self.third_part(self.second_part(self.first_part(images)))
