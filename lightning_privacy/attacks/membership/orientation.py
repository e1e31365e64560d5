"""Which side of a score members lie on."""

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.metrics.functional.roc import auroc

__all__ = ["orientation"]


def orientation(members: Float[Tensor, " members"], nonmembers: Float[Tensor, " nonmembers"]) -> int:
    """Return 1 where members score higher on records of known membership, else -1.

    A defence that overshoots gives members less confidence than others; an attacker who holds labelled records sees it.

    Example:
        >>> import torch
        >>> orientation(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
        -1
    """
    return 1 if auroc(members, nonmembers) >= 0.5 else -1
