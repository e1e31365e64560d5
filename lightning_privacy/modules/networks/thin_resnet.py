"""The thin residual networks for CIFAR: ResNet-20 and ResNet-32, with 16 to 64 channels."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["CifarResNet20", "CifarResNet32"]


class _ThinBlock(nn.Module):
    """Two 3 by 3 convolutions; the shortcut has no parameters (arXiv 1512.03385, option A)."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, outgoing, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outgoing), nn.BatchNorm2d(outgoing)
        self.stride, self.added = stride, outgoing - incoming

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        # every other pixel, and zeros for the new channels
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(self.norm2(self.conv2(hidden)) + shortcut)


class _ThinResNet(nn.Module):
    """6 n + 2 layers in three stages of n blocks."""

    def __init__(self, blocks: int, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        incoming = width
        for stage in range(3):
            outgoing = width * 2**stage
            for block in range(blocks):
                stages.append(_ThinBlock(incoming, outgoing, 2 if stage and block == 0 else 1))
                incoming = outgoing
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(incoming, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # arXiv 1502.01852

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        hidden = self.blocks(F.relu(self.norm(self.stem(images))))
        # A mean and not AdaptiveAvgPool2d, whose gradient is not deterministic on GPUs.
        return self.head(hidden.mean((2, 3)))


class CifarResNet20(_ThinResNet):
    """ResNet-20 for pictures of 32 pixels.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        width: Channels of the first stage; 16 in the paper.

    Example:
        >>> sum(p.numel() for p in CifarResNet20(classes=10, channels=3).parameters())
        269722

    Source:
        He et al., "Deep residual learning for image recognition", arXiv 1512.03385, section 4.2, shortcuts of option A.
    """

    def __init__(self, classes: int, channels: int, width: int = 16) -> None:
        super().__init__(3, classes, channels, width)


class CifarResNet32(_ThinResNet):
    """ResNet-32 for pictures of 32 pixels; arguments and source as of `CifarResNet20`.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        width: Channels of the first stage.

    Example:
        >>> sum(p.numel() for p in CifarResNet32(classes=10, channels=3).parameters())
        464154
    """

    def __init__(self, classes: int, channels: int, width: int = 16) -> None:
        super().__init__(5, classes, channels, width)
