"""A trained attacker on losses relative to the base model, by timestep."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.calibrated_loss import SMALLEST_ERROR
from lightning_privacy.attacks.membership.observed import observed, timestep_ranges
from lightning_privacy.attacks.membership.ridge import RidgeLogistic, fit_ridge_logistic
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import Signals

__all__ = ["TrainedCalibrated"]


class TrainedCalibrated:
    """Learns from records of known membership how members' log losses differ, in each range of timesteps.

    Features of a record: log loss, log reference loss and their difference, averaged over the draws of each of a few
    timestep ranges and over all draws. A ridge logistic regression with an inner cross-validated penalty reads them:
    it can weigh timesteps, use a raised loss as well as a lowered one, and is right for tens of records, where a
    network would only memorise.

    Args:
        bins: At most so many ranges of timesteps, of equal numbers of distinct timesteps.
    """

    name = "trained_calibrated"
    requires = frozenset({"loss", "reference_loss"})
    access = "loss queries to the model and its public base"
    learns = True

    def __init__(self, bins: int = 5) -> None:
        self.bins = bins
        self.rule: RidgeLogistic | None = None

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit the regression; return whether its gradient vanished."""
        features = torch.cat([self.features(members), self.features(nonmembers)])
        labels = torch.tensor([1] * len(members) + [0] * len(nonmembers))
        self.rule = fit_ridge_logistic(features, labels, seeded_generator(seed, self.name))
        return self.rule.converged

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the log-odds of membership.

        Raises:
            RuntimeError: `fit` was not called.
        """
        if self.rule is None:
            raise RuntimeError(f"{self.name}.score was called before fit; fit it on records of known membership.")
        return self.rule.log_odds(self.features(signals))

    def features(self, signals: Signals) -> Float[Tensor, "records features"]:
        """Return the binned log losses of each record."""
        loss, reference = (
            observed(signals, field, self.name).double().clamp_min(SMALLEST_ERROR).log()
            for field in ("loss", "reference_loss")
        )
        per_draw = torch.stack([loss, reference, reference - loss], dim=2)
        groups = [torch.arange(per_draw.shape[1]), *timestep_ranges(signals.timesteps, self.bins)]
        return torch.cat([per_draw[:, group].mean(1) for group in groups], dim=1)
