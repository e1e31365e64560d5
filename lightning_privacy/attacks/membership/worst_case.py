"""The worst-case attack: a classifier trained on the sorted outputs of members and of others."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.classifier_outputs import classifier_outputs
from lightning_privacy.attacks.membership.ridge import RidgeLogistic, fit_ridge_logistic, stratified_folds
from lightning_privacy.attacks.membership.scaled_confidence import scaled_confidence
from lightning_privacy.attacks.membership.stumps import Stumps, balanced_losses, boost_stumps
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import Signals

__all__ = ["WorstCaseAttack", "sorted_log_odds"]


def sorted_log_odds(
    logits: Float[Tensor, "records queries classes"], top: int
) -> Float[Tensor, "records queries kept"]:
    """Return log(p / (1 - p)) of the largest probabilities, in falling order.

    Args:
        logits: Class scores; at least two classes.
        top: At most so many.

    Example:
        >>> sorted_log_odds(torch.tensor([[[-50.0, 50.0]]]), 2).tolist()
        [[[100.0, -100.0]]]
    """
    z = logits.double().sort(2, descending=True).values
    log_p = z.log_softmax(2)[:, :, 1:top]
    # Only the largest probability can be near one; the others are at most a half.
    first = z[:, :, :1] - z[:, :, 1:].logsumexp(2, keepdim=True)
    return torch.cat([first, log_p - torch.log1p(-log_p.exp())], 2)


class WorstCaseAttack:
    """Learns from records of known membership what the model's sorted outputs tell of membership.

    Features of a record, of its first query and averaged over queries: the log-odds of the largest probabilities in
    falling order, whether the model was right, and the log-odds of the true class. A ridge logistic regression reads
    them, and boosted stumps correct it where the relation is no straight line; how many stumps, none included, is
    chosen by the loss on held-out fit records. It is called the worst case because the attacker is given members to
    learn from.

    Deviations from the published tool: a random forest is replaced by the regression and the stumps, which still order
    records beyond all those they were fitted on; outputs are read on a logarithmic scale; the true class is added.

    Args:
        top: At most so many of the largest probabilities.
        rounds: At most so many stumps; where the held-out loss still falls there the fit counts as not converged.
        rate: Share of each Newton step that a stump takes.
        folds: Folds of the inner cross-validation.

    Source:
        arXiv 2212.01233 (worst-case attack), arXiv 2005.13702 (its study), arXiv 1603.02754 (boosting).
    """

    name = "worst_case"
    requires = frozenset({"logits", "labels"})
    access = "class probabilities of the record and of augmented copies"
    learns = True
    folds = 3
    """Every fold boosts anew: fewer than the usual five."""

    def __init__(
        self,
        top: int = 10,  # chosen here: the rest of a thousand classes is noise to a few hundred records
        rounds: int = 150,  # chosen here: at a rate of 0.1 far past the minimum of the held-out loss
        rate: float = 0.1,  # chosen here: the usual one for a hundred rounds
        inner_folds: int = 3,
    ) -> None:
        self.top, self.rounds, self.rate, self.inner_folds = top, rounds, rate, inner_folds
        self.ridge: RidgeLogistic | None = None
        self.stumps: Stumps | None = None

    def features(self, signals: Signals) -> Float[Tensor, "records features"]:
        """Return what the classifier reads of each record."""
        logits, labels = classifier_outputs(signals, self.name)
        right = (logits.argmax(2) == labels.unsqueeze(1)).double().unsqueeze(2)
        own = scaled_confidence(logits, labels).unsqueeze(2)
        each = torch.cat([sorted_log_odds(logits, self.top), right, own], 2)
        # The raw record stands alone as well: copies unlike those of the training would drown what it says.
        return each[:, 0] if each.shape[1] == 1 else torch.cat([each[:, 0], each.mean(1)], 1)

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Fit regression and stumps; return whether the gradient vanished and the held-out loss reached its minimum.

        Args:
            members: Signals of records known to be members, at least two; with fewer than four on a side there is
                nothing to hold out, and the regression stands alone.
            nonmembers: Signals of records known not to be, at least two.
            seed: Decides the folds.
        """
        x = torch.cat([self.features(members), self.features(nonmembers)])
        y = torch.tensor([1] * len(members) + [0] * len(nonmembers))
        generator = seeded_generator(seed, self.name)
        folds = min(self.inner_folds, len(members) // 2, len(nonmembers) // 2)
        if folds < 2:
            self.ridge, self.stumps = self._boost(x, y, generator, 0)
            return self.ridge.converged
        held = stratified_folds(y, folds, generator) == torch.arange(folds).unsqueeze(1)
        held_loss = torch.zeros(self.rounds + 1, dtype=torch.float64)
        for outside in held:
            ridge, stumps = self._boost(x[~outside], y[~outside], generator, self.rounds)
            steps = stumps.steps(x[outside]).cumsum(1)
            # Where no further split was possible the last sum stands for all later rounds.
            path = torch.cat([torch.zeros(len(steps), 1, dtype=torch.float64), steps], 1)
            path = torch.cat([path, path[:, -1:].expand(-1, self.rounds + 1 - path.shape[1])], 1)
            held_loss += balanced_losses(ridge.log_odds(x[outside]).unsqueeze(1) + path, y[outside]) / folds
        chosen = int(held_loss.argmin())
        self.ridge, self.stumps = self._boost(x, y, generator, chosen)
        return self.ridge.converged and chosen < self.rounds

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the log-odds of membership.

        Raises:
            RuntimeError: `fit` was not called.
        """
        if self.ridge is None or self.stumps is None:
            raise RuntimeError("worst_case.score was called before fit; fit it on records of known membership.")
        x = self.features(signals)
        return self.ridge.log_odds(x) + self.stumps.steps(x).sum(1)

    def _boost(self, x: Tensor, y: Tensor, generator: torch.Generator, rounds: int) -> tuple[RidgeLogistic, Stumps]:
        ridge = fit_ridge_logistic(x, y, generator)
        return ridge, boost_stumps(x, y, ridge.log_odds(x), rounds, self.rate, leaf=max(1, min(10, len(x) // 10)))
