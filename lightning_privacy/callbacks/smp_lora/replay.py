"""What the proxy remembers: features of recent steps."""

from collections import deque
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Replay"]


class Replay:
    """Features of the last steps, so that a small proxy is fitted on hundreds of draws instead of a dozen.

    Args:
        length: Steps kept; 0 keeps only the current one.
    """

    def __init__(self, length: int) -> None:
        self.steps: deque[tuple[Tensor, Tensor]] = deque(maxlen=max(1, length))

    def add(self, members: Float[Tensor, "n features"], nonmembers: Float[Tensor, "m features"]) -> None:
        """Add one step's detached features."""
        self.steps.append((members.detach(), nonmembers.detach()))

    def all(self) -> tuple[Float[Tensor, "n features"], Float[Tensor, "m features"]]:
        """Return all members' and all non-members' features."""
        members, nonmembers = zip(*self.steps, strict=True)
        return torch.cat(members), torch.cat(nonmembers)

    def state_dict(self) -> dict[str, Any]:
        """Return the features as tensors."""
        return {"steps": [[m.cpu(), n.cpu()] for m, n in self.steps]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        self.steps.clear()
        self.steps.extend((m.to(device), n.to(device)) for m, n in state["steps"])
