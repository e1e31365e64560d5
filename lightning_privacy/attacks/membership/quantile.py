"""Quantile regression: is the confidence higher than a record like this one has without being a member?"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.classifier_outputs import classifier_outputs, mean_confidence
from lightning_privacy.attacks.membership.gaussian_heads import GaussianHeads, fit_gaussian_heads
from lightning_privacy.attacks.membership.observed import observed, take
from lightning_privacy.attacks.membership.orientation import orientation
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = ["QuantileRegression"]


class QuantileRegression:
    """Calls a record a member if its phi = log(p_y / (1 - p_y)) exceeds what non-members like it have.

    A regression on non-members alone predicts mean and standard deviation of phi from the embedding and the true class;
    the score is (phi - mean) / sd, centred and scaled on other non-members than the regression was fitted on. The
    records with ``score > z`` are then called members at the false-positive rate of a normal tail beyond z, which
    ``observed_fpr`` checks. Members serve only to tell on which side they lie.

    Deviations from the paper: both heads are linear and fitted by ridge regression (hundreds of records, not a data
    set); they read the audited model's embedding instead of the input. The embedding is scaled to length one: its
    length and the true class together nearly fix phi, and a regression that sees them explains membership away. An
    embedding of another, public model is better where there is one.

    Args:
        calibration_share: Share of the non-members kept out of the regression for centre, scale and side.

    Source:
        arXiv 2307.03694 (Gaussian parametrisation of the quantiles).
    """

    name = "quantile_regression"
    requires = frozenset({"logits", "labels", "embedding"})
    access = "class probabilities and an embedding of the record, and records of the population"
    learns = True

    def __init__(self, calibration_share: float = 0.3) -> None:  # chosen here: two numbers need fewer records
        if not 0 < calibration_share < 1:
            raise InputError(f"`calibration_share` must lie between 0 and 1, not {calibration_share}.")
        self.calibration_share = calibration_share
        self.heads: GaussianHeads | None = None
        self.centre, self.scale, self.sign = 0.0, 1.0, 1
        self.held: Float[Tensor, " held"] = torch.empty(0, dtype=torch.float64)

    def features(self, signals: Signals) -> Float[Tensor, "records features"]:
        """Return the direction of the embedding and the true class as zeros and a one."""
        logits, labels = classifier_outputs(signals, self.name)
        direction = F.normalize(observed(signals, "embedding", self.name).double(), dim=1)
        return torch.cat([direction, F.one_hot(labels, logits.shape[2]).double()], 1)

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit the regression on one part of the non-members, centre, scale and side on the other; closed form.

        Args:
            members: Records known to be members; they decide the side alone.
            nonmembers: Records known not to be, at least four.
            seed: Decides which non-members are kept for the calibration.

        Raises:
            InputError: fewer than four non-members.
        """
        if len(nonmembers) < 4:
            raise InputError(
                f"The attack `{self.name}` has {len(nonmembers)} non-members, but needs at least 4: it fits on one part "
                "of them and calibrates on the other; enlarge `attack_nonmember`."
            )
        order = torch.randperm(len(nonmembers), generator=seeded_generator(seed, self.name))
        held = min(max(2, round(self.calibration_share * len(order))), len(order) - 2)
        inside, outside = take(nonmembers, order[held:]), take(nonmembers, order[:held])
        self.heads = fit_gaussian_heads(self.features(inside), mean_confidence(inside, self.name))
        z = self._standardised(outside, self.heads)
        self.centre, self.scale = float(z.mean()), max(float(z.std()), 1e-12)
        self.sign = orientation(self._standardised(members, self.heads), z) if len(members) else 1
        self.held = self.sign * (z - self.centre) / self.scale
        return True

    def observed_fpr(self, alpha: float) -> float:
        """Return the share of the calibration non-members whose score exceeds the normal quantile of 1 - alpha.

        Centre and scale come from the same records, so the number judges the shape of the tail.

        Args:
            alpha: Nominal false-positive rate in (0, 1).
        """
        quantile = float(torch.special.ndtri(torch.tensor(1 - alpha, dtype=torch.float64)))
        return float((self.held > quantile).double().mean())

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return how many standard deviations the confidence lies on the members' side of its prediction.

        Raises:
            RuntimeError: `fit` was not called.
        """
        if self.heads is None:
            raise RuntimeError(f"{self.name}.score was called before fit; fit it on records of known membership.")
        return self.sign * (self._standardised(signals, self.heads) - self.centre) / self.scale

    def _standardised(self, signals: Signals, heads: GaussianHeads) -> Float[Tensor, " records"]:
        return heads.standardise(self.features(signals), mean_confidence(signals, self.name))
