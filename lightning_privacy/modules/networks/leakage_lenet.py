"""The LeNet of the gradient-leakage papers, with or without a normalisation layer after its first convolution."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError
from lightning_privacy.modules.networks.small_cnn import check_size

__all__ = ["LeakageLeNet"]


class LeakageLeNet(nn.Module):
    """Three 5 by 5 convolutions of 12 channels with sigmoids, and one linear layer.

    Smooth activations keep its second derivatives alive, which gradient matching needs.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        image_size: Side of the pictures in pixels, a multiple of 4.
        norm: ``batch`` normalises what the first convolution returns, as the key-lock paper does where it locks; its scale
            and shift are then ``norm1.weight`` and ``norm1.bias``. ``none`` is the network that leakage is measured on.
        half_width: Weights and biases of the convolutions and the head are drawn between minus and plus this number; None
            keeps PyTorch's start.
        width: Channels of each convolution.

    Raises:
        InputError: The side is no multiple of 4.

    Example:
        >>> sum(p.numel() for p in LeakageLeNet(classes=100, channels=3, image_size=32).parameters())
        85036

    Source:
        Zhu, Liu and Han, "Deep leakage from gradients", arXiv 1906.08935, section 4.1, with the released code's sizes and
        its start in (-1/2, 1/2); with batch normalisation arXiv 2305.04095, released code.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        image_size: int,
        norm: Literal["none", "batch"] = "none",
        half_width: float | None = None,
        width: int = 12,
    ) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise InputError(
                f"`leakage_lenet` halves a picture twice and needs a multiple of 4 pixels, but image_size is {image_size}; "
                "crop or resize the pictures."
            )
        self.image_size = image_size
        self.conv1 = nn.Conv2d(channels, width, 5, stride=2, padding=2)
        self.norm1 = nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(width, width, 5, padding=2)
        self.head = nn.Linear(width * (image_size // 4) ** 2, classes)
        if half_width is not None:
            for layer in (self.conv1, self.conv2, self.conv3, self.head):
                for parameter in layer.parameters():
                    nn.init.uniform_(parameter, -half_width, half_width)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        check_size("leakage_lenet", self.image_size, images)
        hidden = torch.sigmoid(self.norm1(self.conv1(images)))
        hidden = torch.sigmoid(self.conv2(hidden))
        hidden = torch.sigmoid(self.conv3(hidden))
        return self.head(hidden.flatten(1))
