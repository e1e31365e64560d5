"""Small networks without normalisation, whose records do not touch each other."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError

__all__ = ["LeNet", "SmallCNN", "check_size"]

SMALLEST = 8  # pixels; two halvings leave 2 by 2


def _quarter(network: str, image_size: int) -> int:
    """Return the side after two halvings."""
    if image_size < SMALLEST:
        raise InputError(
            f"`{network}` halves a picture twice and needs image_size >= {SMALLEST}, but was given {image_size}; "
            "enlarge the pictures."
        )
    return image_size // 2 // 2


def check_size(network: str, size: int, images: Float[Tensor, "batch channels height width"]) -> None:
    """Refuse pictures of another size than a network was built for.

    Args:
        network: Its name, for the error.
        size: Side of its pictures in pixels.
        images: The pictures.

    Raises:
        InputError: They have another size.
    """
    if images.shape[2:] != (size, size):
        raise InputError(
            f"`{network}` was built for pictures of {size} by {size} pixels and got {images.shape[2]} by "
            f"{images.shape[3]}; set `image_size` of ImageClassifier to the side of the (square) pictures."
        )


class SmallCNN(nn.Module):
    """Two 3 by 3 convolutions, each halved by max-pooling, and one linear layer; no normalisation.

    Small and plain on purpose: many copies of it train at once under ``torch.func.vmap``.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        image_size: Side of the pictures in pixels, at least 8.
        width: Channels of the first convolution; the second has twice as many.

    Raises:
        InputError: The pictures are too small.

    Example:
        >>> sum(p.numel() for p in SmallCNN(classes=10, channels=1, image_size=8).parameters())
        21386
    """

    def __init__(self, classes: int, channels: int, image_size: int, width: int = 32) -> None:
        super().__init__()
        side = _quarter("small_cnn", image_size)
        self.image_size = image_size
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width * side * side, classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        check_size("small_cnn", self.image_size, images)
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        return self.head(hidden.flatten(1))


class LeNet(nn.Module):
    """LeNet-5 with padded convolutions and ReLU, so that it takes pictures from 8 to 32 pixels and beyond.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        image_size: Side of the pictures in pixels, at least 8; the first linear layer adapts to it.

    Raises:
        InputError: The pictures are too small.

    Example:
        >>> import torch
        >>> LeNet(classes=10, channels=3, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source:
        LeCun et al., "Gradient-based learning applied to document recognition", 1998, section II.B: 6 and 16 feature
        maps of 5 by 5 kernels, then 120 and 84 units.
    """

    def __init__(self, classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        side = _quarter("lenet", image_size)
        self.image_size = image_size
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5, padding=2), nn.Conv2d(6, 16, 5, padding=2)
        self.linear1, self.linear2 = nn.Linear(16 * side * side, 120), nn.Linear(120, 84)
        self.head = nn.Linear(84, classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        check_size("lenet", self.image_size, images)
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        hidden = F.relu(self.linear1(hidden.flatten(1)))
        return self.head(F.relu(self.linear2(hidden)))
