"""The largest lambda that a budget of accuracy allows, by short trainings compared on ``val``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning.pytorch as L

from lightning_privacy.errors import InputError

__all__ = ["LambdaSearch", "search_lambda"]

Run = tuple[L.Trainer, L.LightningModule, L.LightningDataModule]


@dataclass(frozen=True)
class LambdaSearch:
    """What a search found.

    Args:
        best: The largest lambda within the budget.
        undefended: Accuracy of the undefended model on ``val``.
        accuracies: Accuracy on ``val`` by lambda.
        budget: Accuracy that could be spent.
    """

    best: float
    undefended: float
    accuracies: dict[float, float]
    budget: float


def search_lambda(
    build: Callable[[float | None], Run],
    lams: Sequence[float | int],
    budget: float,
    *,
    metric: str = "val/accuracy",
) -> LambdaSearch:
    """Train undefended and with each lambda, and return the largest one whose accuracy is within the budget.

    Every training is judged at its end on the validation data, the role for choices: neither the hold-out nor an attack
    is looked at. The loss of accuracy of a short schedule need not be that of a long one, and one training of each says
    nothing of the spread between seeds: train the chosen lambda in full, and with other seeds, before relying on it.

    Args:
        build: Makes a trainer of a short schedule, a new module and its data; with ``SparseCoding(lam=...)`` for a number,
            undefended for None. Everything else, seeds included, should be the same each time.
        lams: The candidates, each at least 0.
        budget: Largest loss of accuracy, as a share of 1: 0.01 is one point.
        metric: What the module logs in validation, the larger the better.

    Raises:
        InputError: there are no candidates, none is within the budget, or the module does not log the metric.
    """
    if not lams or min(lams) < 0 or not budget >= 0:
        raise InputError(
            f"search_lambda: `lams` is {list(lams)} and `budget` is {budget}; give at least one lambda, at least 0 each, and "
            "a budget of at least 0."
        )
    undefended = _accuracy(build(None), metric)
    accuracies = {float(lam): _accuracy(build(float(lam)), metric) for lam in sorted(set(lams))}
    within = [lam for lam, accuracy in accuracies.items() if accuracy >= undefended - budget]
    if not within:
        least = min(undefended - accuracy for accuracy in accuracies.values())
        raise InputError(
            f"search_lambda: no lambda of {list(accuracies)} costs at most {budget:.4g} of accuracy; the cheapest costs "
            f"{least:.4g} of {undefended:.4g}. Try smaller ones, or raise the budget."
        )
    return LambdaSearch(max(within), undefended, accuracies, budget)


def _accuracy(run: Run, metric: str) -> float:
    trainer, module, data = run
    trainer.fit(module, datamodule=data)
    found = trainer.validate(module, datamodule=data, verbose=False)[0]
    if metric not in found:
        raise InputError(
            f"search_lambda: {type(module).__name__} logs no `{metric}` in validation, only {', '.join(found) or 'nothing'}. "
            "Name one of these as `metric`."
        )
    return float(found[metric])
