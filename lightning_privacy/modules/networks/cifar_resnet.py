"""ResNet-18 for pictures of 32 pixels, with batch, group or no normalisation."""

from math import gcd

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.errors import InputError

__all__ = ["CifarResNet18"]

NORMS = ("batch", "group", "none")
GROUPS = 32  # arXiv 1803.08494, section 4


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(gcd(GROUPS, channels), channels) if kind == "group" else nn.Identity()


class _Block(nn.Module):
    """Two 3 by 3 convolutions and a shortcut (arXiv 1512.03385, figure 2)."""

    def __init__(self, incoming: int, outgoing: int, stride: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(incoming, outgoing, 3, stride, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=bias)
        self.norm1, self.norm2 = _norm(norm, outgoing), _norm(norm, outgoing)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or incoming != outgoing:
            self.shortcut = nn.Sequential(nn.Conv2d(incoming, outgoing, 1, stride, bias=bias), _norm(norm, outgoing))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class CifarResNet18(nn.Module):
    """ResNet-18 whose stem is one 3 by 3 convolution without max-pooling, as is usual on 32-pixel pictures.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        norm: ``batch``; ``group``, with which no record's scores depend on other records; or ``none``, where every
            residual branch starts at zero so that it trains without normalisation (arXiv 1901.09321, section 3).
        width: Channels of the first stage; 64 in the paper.

    Raises:
        InputError: ``norm`` is none of the three.

    Example:
        >>> sum(p.numel() for p in CifarResNet18(classes=10, channels=3).parameters())
        11173962

    Source:
        He et al., "Deep residual learning for image recognition", arXiv 1512.03385, table 1 (18 layers) with the stem of
        section 4.2.
    """

    def __init__(self, classes: int, channels: int, norm: str = "batch", width: int = 64) -> None:
        super().__init__()
        if norm not in NORMS:
            raise InputError(f"`cifar_resnet18` knows no norm {norm!r}; choose one of {', '.join(NORMS)}.")
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
        self.norm = _norm(norm, width)
        blocks: list[nn.Module] = []
        incoming = width
        for stage in range(4):
            outgoing = width * 2**stage
            blocks += [_Block(incoming, outgoing, 1 if stage == 0 else 2, norm), _Block(outgoing, outgoing, 1, norm)]
            incoming = outgoing
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(incoming, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # arXiv 1502.01852
        if norm == "none":
            for block in blocks:
                for parameter in block.get_submodule("conv2").parameters():
                    nn.init.zeros_(parameter)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        hidden = self.blocks(F.relu(self.norm(self.stem(images))))
        # A mean and not AdaptiveAvgPool2d, whose gradient is not deterministic on GPUs.
        return self.head(hidden.mean((2, 3)))
