"""The learning-rate schedule of both pre-trainings."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

__all__ = ["warm_cosine"]


def warm_cosine(optimizer: Optimizer, steps: int) -> dict[str, Any]:
    """Return Lightning's optimizer dict: a linear warm-up over at most 100 steps, then a cosine to a twentieth.

    Args:
        optimizer: With one parameter group.
        steps: Optimizer steps of the whole training.
    """
    warm = min(100, max(1, steps // 10))
    lr = optimizer.param_groups[0]["lr"]
    schedule = SequentialLR(
        optimizer,
        [LinearLR(optimizer, 0.01, 1.0, warm), CosineAnnealingLR(optimizer, max(1, steps - warm), lr / 20)],
        [warm],
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
