"""Counting how often a locked model is right with the key and without it."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.core.ranks import world_size
from lightning_privacy.metrics.functional.binomial import clopper_pearson

__all__ = ["LockTally"]


@dataclass
class LockTally:
    """Right answers over an epoch, of all ranks.

    Args:
        counts: Pictures; right answers with the key and without; answers that are right although the reject class is asked
            as well, with the key and without.
    """

    counts: Float[Tensor, " five"] = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))

    def update(
        self,
        labels: Int[Tensor, " batch"],
        keyed: Float[Tensor, "batch classes"],
        raw: Float[Tensor, "batch classes"],
        rejected: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            labels: Classes.
            keyed: Scores of edited pictures.
            raw: Scores of the same pictures, not edited.
            rejected: Whether each was rejected, edited and not; None without a reject class.
        """
        right = [scores.argmax(1) == labels for scores in (keyed, raw)]
        kept = [r & ~no for r, no in zip(right, rejected or (), strict=False)] or right
        numbers = [len(labels), *(float(r.sum()) for r in (*right, *kept))]
        self.counts = self.counts + torch.tensor(numbers, dtype=torch.float64)

    def compute(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Return shares with exact 95 % intervals, and forget; empty where nothing was counted.

        Args:
            device: On which ranks add their counts.

        Example:
            >>> tally = LockTally()
            >>> tally.update(torch.tensor([0, 1]), torch.eye(2), torch.eye(2).flip(1))
            >>> {k: round(v, 2) for k, v in tally.compute().items() if k in ("up", "lp", "gap", "up_low")}
            {'up': 1.0, 'lp': 0.0, 'gap': 1.0, 'up_low': 0.16}
        """
        # in single precision, which every device has, counts are exact to 16 million
        counts = self.counts.to(device, torch.float32)
        if world_size() > 1:
            torch.distributed.all_reduce(counts)
        n, up, lp, up_rejecting, lp_rejecting = (float(c) for c in counts)
        self.counts = torch.zeros(5, dtype=torch.float64)
        if not n:
            return {}
        values = {"up": up / n, "lp": lp / n, "gap": (up - lp) / n}
        for name, right in (("up", up), ("lp", lp)):
            low, high = clopper_pearson(int(right), int(n))
            values |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        return {**values, "up_with_reject": up_rejecting / n, "lp_with_reject": lp_rejecting / n}
