"""A classifier that attacks on shared gradients solve in half a second, for tests of defences against them."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SmoothClassifier"]


class SmoothClassifier(L.LightningModule):
    """One wide convolution with a sigmoid and a linear head, on pictures of 8 by 8 pixels.

    It has more shared numbers than a picture has pixels and smooth second derivatives, so that an undefended update gives
    its record away.

    Args:
        norm: Whether batch normalisation stands behind the convolution.

    Example:
        >>> SmoothClassifier().logits({"image": torch.zeros(2, 3, 8, 8)}).shape
        torch.Size([2, 4])
    """

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential()
            self.network.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
            self.network.norm1 = nn.BatchNorm2d(16) if norm else nn.Identity()
            self.network.curve, self.network.flat = nn.Sigmoid(), nn.Flatten()
            self.network.head = nn.Linear(256, 4)

    def logits(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch classes"]:
        """Return class scores."""
        return self.network(batch["image"])

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        """Return the cross-entropy."""
        loss = F.cross_entropy(self.logits(batch), batch["label"])
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the cross-entropy."""
        self.log("val/loss", F.cross_entropy(self.logits(batch), batch["label"]), batch_size=len(batch["label"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)
