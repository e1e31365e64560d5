"""Attacks that see the predicted class alone, no probability."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.classifier_outputs import classifier_outputs
from lightning_privacy.attacks.membership.observed import observed
from lightning_privacy.attacks.membership.ridge import RidgeLogistic, fit_ridge_logistic
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = ["AugmentationAgreement", "BoundaryDistance"]


class AugmentationAgreement:
    """Calls a record a member if the model is right on it and on its augmented copies.

    A ridge logistic regression reads which of the copies were classified right and their share. With one query there
    is only right or wrong: that is the gap attack, whose advantage is the generalisation gap, and whose scores have two
    values. Augment as the training did: copies that training never saw say less.

    Source:
        arXiv 2007.14321 (augmentation attack); the gap attack is that of arXiv 1709.01604.
    """

    name = "augmentation_agreement"
    requires = frozenset({"logits", "labels"})
    access = "predicted classes of the record and of augmented copies"
    learns = True

    def __init__(self) -> None:
        self.rule: RidgeLogistic | None = None

    def features(self, signals: Signals) -> Float[Tensor, "records features"]:
        """Return whether each query was classified right, and the share."""
        logits, labels = classifier_outputs(signals, self.name)
        right = (logits.argmax(2) == labels.unsqueeze(1)).double()
        return torch.cat([right, right.mean(1, keepdim=True)], 1)

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
            InputError: another number of queries than at the fit.
        """
        if self.rule is None:
            raise RuntimeError(f"{self.name}.score was called before fit; fit it on records of known membership.")
        features = self.features(signals)
        if features.shape[1] != len(self.rule.weights):
            raise InputError(
                f"The attack `{self.name}` was fitted on {len(self.rule.weights) - 1} queries but is given "
                f"{features.shape[1] - 1}; compute all signals with the same number of queries."
            )
        return self.rule.log_odds(features)


class BoundaryDistance:
    """Calls a record a member if it lies far from the model's decision boundary; misclassified records lie at zero.

    The distance comes from hard labels alone, by `lightning_privacy.attacks.membership.boundary.boundary_distance`.

    Source:
        arXiv 2007.14321 (boundary distance).
    """

    name = "boundary_distance"
    requires = frozenset({"boundary_distance"})
    access = "predicted classes of thousands of inputs a record"
    learns = False
    calibrates = False

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit nothing."""
        return True

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the estimated distance."""
        return observed(signals, "boundary_distance", self.name).double()
