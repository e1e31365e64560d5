"""A classifier that judges class-level reconstructions: trained apart, so that no trick of the attacked model fools it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_privacy.attacks.inversion.crops import random_resized_crops
from lightning_privacy.attacks.inversion.own_randomness import own_randomness

__all__ = ["EvaluationClassifier", "train_evaluation_classifier"]

_HALF = 0.5


class EvaluationClassifier(nn.Module):
    """Three convolutions, each halved, group-normalised, and one linear layer on what is left.

    Args:
        classes: Number of classes.
        channels: Channels of the pictures.
        width: Channels of the first convolution.

    Example:
        >>> network = EvaluationClassifier(classes=5, channels=1)
        >>> network(torch.zeros(2, 1, 16, 16)).shape, network.features(torch.zeros(2, 1, 16, 16)).shape
        (torch.Size([2, 5]), torch.Size([2, 256]))
    """

    def __init__(self, classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2, ceil_mode=True)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * widths[-1], classes)

    def features(self, pictures: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n features"]:
        """Return what the linear layer reads."""
        return self.body(pictures - _HALF)

    def forward(self, pictures: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n classes"]:
        """Return class scores."""
        return self.head(self.features(pictures))


def train_evaluation_classifier(
    pictures: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    classes: int,
    seed: int,
    steps: int = 600,  # chosen here: on 280 faces of 40 people of 32 pixels it then recognises nine new faces in ten
    batch_size: int = 64,  # chosen here
    lr: float | int = 3e-3,  # chosen here
) -> EvaluationClassifier:
    """Train the judge on pictures and classes; it serves measurement alone, and no attacker sees it.

    Args:
        pictures: Values in [0, 1], private ones among them.
        labels: Their classes.
        classes: Number of classes.
        seed: Of first weights, order and crops.
        steps: Optimizer steps.
        batch_size: Pictures a step.
        lr: Largest learning rate.

    Returns:
        The network, in evaluation mode and without gradients.
    """
    with own_randomness(seed, "evaluation classifier", pictures.device) as draws, torch.enable_grad():
        network = EvaluationClassifier(classes, pictures.shape[1]).to(pictures.device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps + 1)
        for _ in range(steps):
            rows = torch.randint(len(pictures), (batch_size,), generator=draws).to(pictures.device)
            seen = random_resized_crops(pictures[rows], draws, (0.6, 1))  # harder crops than the attack's own
            loss = F.cross_entropy(network(seen), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)
