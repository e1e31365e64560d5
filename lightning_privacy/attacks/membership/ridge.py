"""Ridge logistic regression for a few dozen records: exact Newton steps, penalty chosen by inner cross-validation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["RidgeLogistic", "fit_ridge_logistic", "stratified_folds"]

PENALTIES = tuple(10.0**k for k in range(-3, 3))  # per record; 100 shrinks standardised weights to nearly nothing
NEWTON_STEPS = 50
FLAT = 1e-8  # largest entry of the gradient of the mean loss that counts as converged


@dataclass(frozen=True)
class RidgeLogistic:
    """A fitted linear rule on standardised features.

    Args:
        mean: Subtracted from the features.
        scale: Divides them.
        weights: One a feature.
        bias: Log-odds at the mean.
        penalty: The chosen ridge penalty.
        converged: Whether the gradient vanished.
    """

    mean: Float[Tensor, " dim"]
    scale: Float[Tensor, " dim"]
    weights: Float[Tensor, " dim"]
    bias: float
    penalty: float
    converged: bool

    def log_odds(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Return the log-odds of membership of each row."""
        return (features - self.mean) / self.scale @ self.weights + self.bias


def stratified_folds(labels: Int[Tensor, " n"], folds: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return the fold of each record, each class spread evenly over the folds."""
    fold = torch.empty_like(labels)
    for label in (0, 1):
        rows = (labels == label).nonzero().squeeze(1)
        fold[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % folds
    return fold


def _class_weights(labels: Int[Tensor, " n"], used: Float[Tensor, "fits n"]) -> Float[Tensor, "fits n"]:
    """Weigh both classes alike: the share of members among the attacker's records says nothing about a record."""
    weight = torch.zeros_like(used)
    for label in (0, 1):
        rows = used * (labels == label)
        weight += rows / (2 * rows.sum(1, keepdim=True))
    return weight


def _newton(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    weight: Float[Tensor, "fits n"],
    penalty: Float[Tensor, " fits"],
) -> tuple[Float[Tensor, "fits dim_and_bias"], bool]:
    """Minimise sum_i w_i CE_i + penalty/2 |weights|^2 for several (w, penalty) at once; the bias, last, goes free."""
    design = F.pad(features, (0, 1), value=1.0)
    target = labels.double()
    ridge = penalty.unsqueeze(1).repeat(1, design.shape[1])
    ridge[:, -1] = 1e-9  # keeps the system solvable where classes are separable
    theta = torch.zeros_like(ridge)

    def objective(theta: Tensor) -> Tensor:
        logits = theta @ design.T
        losses = F.softplus(logits) - target * logits
        return (weight * losses).sum(1) + (ridge * theta.square()).sum(1) / 2

    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(theta @ design.T)
        gradient = (weight * (p - target)) @ design + ridge * theta
        if float(gradient.abs().max()) < FLAT:
            return theta, True
        curvature = weight * p * (1 - p)
        hessian = design.T @ (curvature.unsqueeze(2) * design) + torch.diag_embed(ridge)
        step = torch.linalg.solve(hessian, gradient)
        now, size = objective(theta), torch.ones_like(penalty)
        for _ in range(20):
            worse = objective(theta - size.unsqueeze(1) * step) > now
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        theta = theta - size.unsqueeze(1) * step
    return theta, False


def fit_ridge_logistic(
    features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], generator: torch.Generator, folds: int = 5
) -> RidgeLogistic:
    """Fit with the penalty of the lowest cross-validated log loss; among near-equals (one standard error), the largest.

    Args:
        features: One row a record.
        labels: 1 for members, 0 for others; both occur at least twice.
        generator: Decides the folds.
        folds: At most so many.
    """
    features = features.double()
    mean, scale = features.mean(0), features.std(0)
    scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
    x = (features - mean) / scale
    folds = min(folds, int((labels == 0).sum()), int((labels == 1).sum()))
    held = stratified_folds(labels, folds, generator) == torch.arange(folds).unsqueeze(1)
    penalties = torch.tensor(PENALTIES, dtype=torch.float64)
    # One row a (penalty, fold): all of them are fitted together.
    inside = (~held).double().repeat(len(penalties), 1)
    theta, _ = _newton(x, labels, _class_weights(labels, inside), penalties.repeat_interleave(folds))
    logits = theta @ F.pad(x, (0, 1), value=1.0).T
    losses = (F.softplus(logits) - labels * logits).view(len(penalties), folds, -1)
    # Each record is held out once: its loss under the fit that did not see it.
    everyone = torch.ones(1, len(labels), dtype=torch.float64)
    per_record = (losses * held).sum(1) * _class_weights(labels, everyone) * len(labels)
    average = per_record.mean(1)
    best = int(average.argmin())
    near = average[best] + per_record[best].std() / len(labels) ** 0.5
    chosen = int((average <= near).nonzero().max())
    final, converged = _newton(x, labels, _class_weights(labels, everyone), penalties[chosen : chosen + 1])
    return RidgeLogistic(mean, scale, final[0, :-1], float(final[0, -1]), PENALTIES[chosen], converged)
