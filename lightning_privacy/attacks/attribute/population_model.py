"""What anyone can guess of an attribute without the audited record: regression on records of the population."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.membership.ridge import RidgeLogistic, fit_ridge_logistic
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["AttributeModel", "fit_attribute_model"]


@dataclass(frozen=True)
class AttributeModel:
    """A fitted guess of a discrete attribute, one ridge logistic regression a value against the others.

    Args:
        candidates: Values that the attribute can have.
        centre: Subtracted from the features.
        directions: Principal directions that the regressions read.
        rules: One a value; None for a value with too few records to fit on.
        log_odds: Log-odds of each value's share of the population.
        majority: The most frequent value.
    """

    candidates: tuple[int, ...]
    centre: Float[Tensor, " dim"]
    directions: Float[Tensor, "dim kept"]
    rules: tuple[RidgeLogistic | None, ...]
    log_odds: tuple[float, ...]
    majority: int

    @property
    def converged(self) -> bool:
        """Return whether every regression's gradient vanished."""
        return all(rule is None or rule.converged for rule in self.rules)

    def log_probabilities(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n candidates"]:
        """Return the logarithm of the probability of each candidate value.

        Raises:
            InputError: another number of features than was fitted.
        """
        if features.shape[1] != len(self.centre):
            raise InputError(
                f"The attribute model was fitted on {len(self.centre)} features but is given {features.shape[1]}."
            )
        x = (features.double() - self.centre) @ self.directions
        columns = [
            torch.full((len(x),), prior, dtype=torch.float64) + (0.0 if rule is None else rule.log_odds(x))
            for rule, prior in zip(self.rules, self.log_odds, strict=True)
        ]
        return torch.nn.functional.logsigmoid(torch.stack(columns, 1)).log_softmax(1)

    def infer(self, features: Float[Tensor, "n dim"]) -> Int[Tensor, " n"]:
        """Return the likeliest value of each record."""
        return torch.tensor(self.candidates)[self.log_probabilities(features).argmax(1)]


def fit_attribute_model(
    features: Float[Tensor, "n dim"],
    values: Int[Tensor, " n"],
    candidates: Sequence[int],
    seed: int = 0,
    components: int = 32,
) -> AttributeModel:
    """Fit the guess on records of the population, none of which the audited model was trained on.

    With the known attributes and the true class as features this is the imputation that an attribute inference has to
    beat; with the audited model's embedding it is the attack itself.

    Args:
        features: One row a record.
        values: The records' attribute.
        candidates: Values that the attribute can have.
        seed: Decides the folds of the penalty's choice.
        components: At most so many principal directions of the features are read.

    Raises:
        InputError: a value is no candidate, or fewer than four records.

    Example:
        >>> x = torch.arange(20.0).unsqueeze(1)
        >>> model = fit_attribute_model(x, (x[:, 0] > 9).long(), [0, 1])
        >>> model.infer(torch.tensor([[2.0], [17.0]])).tolist()
        [0, 1]

    Source:
        arXiv 2209.01292 (imputation as the baseline).
    """
    known = set(map(int, candidates))
    strange = sorted(set(values.tolist()) - known)
    if strange or len(values) < 4:
        raise InputError(
            f"An attribute model needs at least 4 records whose values are among {sorted(known)}; there are "
            f"{len(values)}" + (f", with the value {strange[0]} among them." if strange else ".")
        )
    x = features.double()
    centre = x.mean(0)
    _, s, vh = torch.linalg.svd(x - centre, full_matrices=False)
    kept = max(1, min(components, int((s > 1e-9 * s[0].clamp_min(1e-300)).sum())))
    directions = vh[:kept].T
    reduced, rules, log_odds = (x - centre) @ directions, [], []
    counts = [int((values == value).sum()) for value in candidates]
    for value, count in zip(candidates, counts, strict=True):
        # One half is added to both counts: a value that was not seen is rare, not impossible.
        log_odds.append(float(torch.tensor((count + 0.5) / (len(values) - count + 0.5)).log()))
        fits = count >= 2 and len(values) - count >= 2
        generator = seeded_generator(seed, "attribute", int(value))
        rules.append(fit_ridge_logistic(reduced, (values == value).long(), generator) if fits else None)
    majority = int(candidates[counts.index(max(counts))])
    return AttributeModel(tuple(map(int, candidates)), centre, directions, tuple(rules), tuple(log_odds), majority)
