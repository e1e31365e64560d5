"""Membership metrics as torchmetrics classes: scores come in batches, over epochs and ranks; one number comes out."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_privacy.core.results import Metric as Measured
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.delong import delong_interval
from lightning_privacy.metrics.functional.epsilon import ThresholdStrategy, epsilon_lower_bound
from lightning_privacy.metrics.functional.low_fpr import tpr_at_fpr_interval
from lightning_privacy.metrics.functional.roc import operating_points
from lightning_privacy.metrics.functional.two_sided import two_sided

__all__ = ["EpsilonLowerBound", "MembershipAUROC", "TPRAtFPR", "two_sided"]


class _ScoreMetric(Metric):
    """Keeps scores and membership of all records; what is computed from them is `_measure`."""

    higher_is_better = False  # for the model: the attacker's gain is its owner's loss
    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    member: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("scores", "member"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, scores: Float[Tensor, " records"], member: Bool[Tensor, " records"]) -> None:
        """Add a batch of records.

        Args:
            scores: Attack scores, higher = more member-like.
            member: Whether each record was trained on.
        """
        self.scores.append(scores.detach())
        self.member.append(member)

    def compute(self) -> Float[Tensor, ""]:
        """Return the number over all records of all ranks; NaN where `result` calls it invalid.

        Raises:
            InputError: there is no member or no non-member yet, or a score is NaN.
        """
        measured = self._measured()
        return torch.tensor(measured.value if measured.valid else torch.nan, device=self.device)

    def result(self) -> Measured:
        """Return the number over all records of all ranks, with its 95 % interval and why it may be invalid.

        Raises:
            InputError: there is no member or no non-member yet, or a score is NaN.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._measured()

    def _measured(self) -> Measured:
        if not len(self.scores):
            raise InputError(f"`{type(self).__name__}` has seen no record; call `update` with scores and membership.")
        # The counting and the exact intervals are in float64 on the CPU, whatever the model's device and precision.
        scores, member = dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.member).cpu()
        return self._measure(scores[member], scores[~member])

    @abstractmethod
    def _measure(self, member: Tensor, nonmember: Tensor) -> Measured: ...


class MembershipAUROC(_ScoreMetric):
    """Probability that a member outscores a non-member, ties counting one half; `result` adds DeLong's interval.

    In a LightningModule call ``update`` for each batch and log the object: a batch of one side alone has no AUROC, so
    that its value at each step (``metric(scores, member)``) is an error.

    Args:
        **kwargs: See ``torchmetrics.Metric``.

    Example:
        >>> auroc = MembershipAUROC()
        >>> auroc.update(torch.tensor([0.1, 0.6, 0.2]), torch.tensor([False, False, False]))
        >>> auroc.update(torch.tensor([0.45, 0.9, 0.99]), torch.tensor([True, True, True]))
        >>> auroc.compute()
        tensor(0.8889)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def _measure(self, member: Tensor, nonmember: Tensor) -> Measured:
        return delong_interval(member, nonmember)


class TPRAtFPR(_ScoreMetric):
    """Largest true-positive rate at a false-positive rate of at most ``fpr``; `result` adds its interval.

    The interval accounts for the cut, see `tpr_at_fpr_interval`. ``compute`` is NaN where the non-members allow fewer
    than 10 false positives.

    Args:
        fpr: False-positive rate in (0, 1).
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        InputError: a rate outside (0, 1).

    Example:
        >>> tpr = TPRAtFPR(0.1)
        >>> tpr.update(torch.arange(200.0), torch.arange(200) >= 100)
        >>> tpr.compute()
        tensor(1.)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, fpr: float | int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < fpr < 1:
            raise InputError(f"A false-positive rate lies between 0 and 1, but {fpr} was given; 0.01 is usual.")
        self.fpr = fpr

    def _measure(self, member: Tensor, nonmember: Tensor) -> Measured:
        return tpr_at_fpr_interval(operating_points(member, nonmember), self.fpr)


class EpsilonLowerBound(_ScoreMetric):
    """Epsilon that the attack's hits and alarms certify at 95 % confidence; see `epsilon_lower_bound`.

    ``compute`` is NaN under the strategy ``scored_records``, whose number does not hold.

    Args:
        threshold: The cut, found on other records; only for the strategies ``given`` and ``scored_records``.
        strategy: Where the cut comes from.
        delta: The delta at which epsilon is bounded, in [0, 1).
        seed: Of the halves of the strategy ``split``.
        tests: How many attacks' bounds are looked at, so that all of them hold together (Bonferroni).
        **kwargs: See ``torchmetrics.Metric``.

    Example:
        >>> epsilon = EpsilonLowerBound(threshold=99.5)
        >>> epsilon.update(torch.arange(200.0), torch.arange(200) >= 100)
        >>> epsilon.compute()
        tensor(3.2813)
    """

    plot_lower_bound = 0.0

    def __init__(
        self,
        threshold: float | int | None = None,
        strategy: ThresholdStrategy = "given",
        delta: float | int = 0,
        seed: int = 0,
        tests: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.strategy: ThresholdStrategy = strategy
        self.threshold, self.delta, self.seed, self.tests = threshold, delta, seed, tests

    def _measure(self, member: Tensor, nonmember: Tensor) -> Measured:
        return epsilon_lower_bound(member, nonmember, self.threshold, self.strategy, self.delta, self.seed, self.tests)
