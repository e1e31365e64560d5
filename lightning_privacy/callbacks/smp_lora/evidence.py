"""What the proxy remembers: features of recent steps, and a running mean of each record's feature."""

from collections import deque
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.core.ranks import gather_rows

__all__ = ["RecordMemory", "Replay"]


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


class RecordMemory:
    """A running mean of each record's feature over its visits: the view of an attacker who averages many draws.

    The value that the proxy reads is the mean; the gradient flows through the current draw as if it were the mean
    (straight-through), so that one draw a step defends against an attack that averages.

    Args:
        records: Records of the data set.
        decay: Share of the old mean kept at each visit, 0 (no memory) to below 1.
        device: Where the means live.
    """

    def __init__(self, records: int, decay: float, device: torch.device) -> None:
        self.decay = decay
        self.mean = torch.zeros(records, device=device)
        self.weight = torch.zeros(records, device=device)

    def read(self, feature: Float[Tensor, " batch"], indices: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the mean including the current draw, with the current draw's gradient; store it."""
        # Every rank stores what all ranks saw: the sampler moves records between ranks from epoch to epoch.
        rows = gather_rows(torch.stack([indices.to(feature), feature.detach()], 1))
        seen = rows[:, 0].long()
        weight = self.decay * self.weight[seen] + 1
        self.mean[seen] += (rows[:, 1] - self.mean[seen]) / weight
        self.weight[seen] = weight
        return self.mean[indices] + (feature - feature.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return the means as tensors."""
        return {"mean": self.mean.cpu().clone(), "weight": self.weight.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.mean.copy_(state["mean"])
        self.weight.copy_(state["weight"])
