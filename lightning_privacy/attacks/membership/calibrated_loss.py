"""Loss relative to the model before fine-tuning, on the same draws."""

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.observed import observed
from lightning_privacy.core.results import Signals

__all__ = ["CalibratedLoss", "log_ratio"]

SMALLEST_ERROR = 1e-12  # below it an error is zero to float32, and its logarithm would rule the average


def log_ratio(signals: Signals, attack: str = "calibrated_loss") -> Float[Tensor, "records draws"]:
    """Return log(reference error / error) of each record and draw: how much fine-tuning lowered it."""
    logs = [
        observed(signals, field, attack).double().clamp_min(SMALLEST_ERROR).log()
        for field in ("reference_loss", "loss")
    ]
    return logs[0] - logs[1]


class CalibratedLoss:
    """Calls a record a member if fine-tuning lowered its error much: mean over draws of log(reference error / error).

    Dividing by the error of the public base model on the same draw removes what makes a picture easy or hard and most
    of the draw's own noise. With a LoRA adapter the base model is at hand for anyone who holds the adapter, which makes
    this the strongest cheap attack.

    Source:
        Difficulty calibration, arXiv 2111.08440; for LoRA against its base, arXiv 2507.18302.
    """

    name = "calibrated_loss"
    requires = frozenset({"loss", "reference_loss"})
    access = "loss queries to the model and its public base"
    learns = False
    calibrates = False

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit nothing."""
        return True

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the mean log ratio of each record."""
        return log_ratio(signals, self.name).mean(1)
