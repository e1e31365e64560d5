"""Loss threshold averaged over many fixed draws."""

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.observed import observed
from lightning_privacy.core.results import Signals

__all__ = ["AveragedLoss"]


class AveragedLoss:
    """Calls a record a member if its raw error, averaged over many fixed (timestep, noise) draws, is low.

    One draw of a diffusion model's error is mostly noise; the average over draws that are the same for every record
    is the natural attack on a defence that was trained against single draws. For a classifier it is the loss
    threshold of Yeom et al.

    Source:
        arXiv 1709.01604 (loss threshold), arXiv 2302.03262 (diffusion models).
    """

    name = "averaged_loss"
    requires = frozenset({"loss"})
    access = "loss queries"
    learns = False
    calibrates = False

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit nothing."""
        return True

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return minus the mean error of each record."""
        return -observed(signals, "loss", self.name).double().mean(1)
