"""Attacks that cut the confidence of a classifier: one threshold, or one a class."""

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.class_thresholds import ClassThresholds, fit_class_thresholds
from lightning_privacy.attacks.membership.classifier_outputs import classifier_outputs, mean_confidence
from lightning_privacy.attacks.membership.entropy import log_modified_entropy
from lightning_privacy.attacks.membership.observed import observed
from lightning_privacy.attacks.membership.orientation import orientation
from lightning_privacy.core.results import Signals

__all__ = ["ClassConfidence", "ModifiedEntropy", "ScaledConfidence"]


class ScaledConfidence:
    """Calls a record a member if the model is sure of its true class: phi = log(p_y / (1 - p_y)), mean over queries.

    The order is that of the loss threshold, without the ties that a loss rounded to zero has.

    Source:
        arXiv 1709.01604 (loss threshold), arXiv 2112.03570, section V-A (phi).
    """

    name = "scaled_confidence"
    requires = frozenset({"logits", "labels"})
    access = "class probabilities of the record and of augmented copies"
    learns = False
    calibrates = False

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit nothing."""
        return True

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the mean scaled confidence of each record."""
        return mean_confidence(signals, self.name)


class _ClassCalibrated:
    name: str
    requires = frozenset({"logits", "labels"})
    access = "class probabilities of the record and of augmented copies"
    learns = True

    # chosen here: with ten records on each side a class's threshold is about as uncertain as classes differ
    def __init__(self, prior_records: float | int = 10) -> None:
        self.prior_records = prior_records
        self.sign = 1
        self.thresholds: ClassThresholds | None = None

    def statistic(self, signals: Signals) -> Float[Tensor, " records"]:
        raise NotImplementedError

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit the side on which members lie and one threshold a class; there is nothing that could fail to converge."""
        scores = [self.statistic(x) for x in (members, nonmembers)]
        labels = [observed(x, "labels", self.name) for x in (members, nonmembers)]
        self.sign = orientation(*scores)
        high, low = (self.sign * x for x in scores)
        self.thresholds = fit_class_thresholds(high, labels[0], low, labels[1], self.prior_records)
        return True

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return how far each record lies on the members' side of its class's threshold.

        Raises:
            RuntimeError: `fit` was not called.
        """
        if self.thresholds is None:
            raise RuntimeError(f"{self.name}.score was called before fit; fit it on records of known membership.")
        return self.sign * self.statistic(signals) - self.thresholds.of(observed(signals, "labels", self.name))


class ClassConfidence(_ClassCalibrated):
    """Calls a record a member if phi = log(p_y / (1 - p_y)) lies above the threshold of its class.

    A class that the model finds hard has low confidence on members and on others alike; one threshold a class takes
    that out. A class of few records borrows the threshold of all.

    Args:
        prior_records: With so many members and non-members in a class its own threshold counts one half.

    Source:
        arXiv 2003.10595 (class-specific thresholds).
    """

    name = "class_confidence"

    def statistic(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the mean scaled confidence."""
        return mean_confidence(signals, self.name)


class ModifiedEntropy(_ClassCalibrated):
    """Calls a record a member if its modified entropy lies below the threshold of its class.

    The modified entropy also reads how the probability that the true class lacks is spread over the other classes.

    Args:
        prior_records: With so many members and non-members in a class its own threshold counts one half.

    Source:
        arXiv 2003.10595 (Mentr, class-specific thresholds).
    """

    name = "modified_entropy"

    def statistic(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return minus the logarithm of the modified entropy, averaged over queries."""
        return -log_modified_entropy(*classifier_outputs(signals, self.name)).mean(1)
