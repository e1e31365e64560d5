"""The likelihood-ratio attack: how much better the target's confidence fits models that saw the record."""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.shadow_evidence import (
    SHADOW_SIGNALS,
    Moments,
    ShadowEvidence,
    moments,
    require_shadows,
    shadow_evidence,
)
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = [
    "LiraOffline",
    "LiraOfflineFixed",
    "LiraOnline",
    "LiraOnlineFixed",
    "gaussian_log_ratio",
    "one_sided_exceedance",
    "pooled_variance",
]

Center = Literal["mean", "median"]
_SMALLEST_VARIANCE = 1e-12  # models that agree to the last digit have a variance of rounding errors


def gaussian_log_ratio(
    phi: Float[Tensor, "records queries"],
    mean_in: Float[Tensor, "records queries"],
    variance_in: Float[Tensor, "records queries"],
    mean_out: Float[Tensor, "records queries"],
    variance_out: Float[Tensor, "records queries"],
) -> Float[Tensor, " records"]:
    """Return the sum over queries of log N(phi | mean_in, variance_in) - log N(phi | mean_out, variance_out).

    Example:
        >>> phi, zero, one = torch.tensor([[2.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])
        >>> gaussian_log_ratio(phi, one, one, zero, one)
        tensor([1.5000])
    """
    z_in, z_out = (phi - mean_in).square() / variance_in, (phi - mean_out).square() / variance_out
    return (z_out - z_in + variance_out.log() - variance_in.log()).sum(1) / 2


def one_sided_exceedance(
    phi: Float[Tensor, "records queries"],
    mean_out: Float[Tensor, "records queries"],
    variance_out: Float[Tensor, "records queries"],
) -> Float[Tensor, " records"]:
    """Return z = sum over the Q queries of (phi - mean_out) / sd_out, divided by the root of Q.

    The offline attack's score is log P[Z < z] with a standard normal Z, which rises with z. We return z itself: the
    logarithm rounds to zero above z = 38, which would tie the records that the attack is surest of. Under the
    hypothesis "not a member" and independent queries z is standard normal again, for any number of queries.

    Example:
        >>> one_sided_exceedance(torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[4.0, 4.0]]))
        tensor([2.1213])
    """
    return ((phi - mean_out) / variance_out.sqrt()).sum(1) / math.sqrt(phi.shape[1])


def pooled_variance(
    evidence: list[ShadowEvidence], inside: bool, known: ShadowEvidence
) -> Float[Tensor, " queries"] | None:
    """Return the variance of a record's confidence between models, pooled over records.

    It is the sum of squares about each record's own mean over sum (n_r - 1), where record r has n_r of these shadows.
    Where no record has two, the audited model is the second: it is known to be IN for the attacker's members and OUT for
    the attacker's non-members, and its squared distance from a mean of n_r shadows is (1 + 1 / n_r) variances.

    Args:
        evidence: Of all records to pool over.
        inside: Whether over the IN shadows.
        known: Records for which the audited model itself is known to be IN (if ``inside``) or OUT.

    Returns:
        One variance a query, or None where there is not even that.
    """
    parts = [moments(part, inside) for part in evidence]
    freedom = sum(int((part.count - 1).clamp_min(0).sum()) for part in parts)
    if freedom:
        return torch.stack([part.squares.sum(0) for part in parts]).sum(0) / freedom
    own = moments(known, inside)
    seen = own.count > 0
    if not seen.any():
        return None
    n = own.count[seen].unsqueeze(1)
    return ((known.target - own.centre)[seen].square() * n / (n + 1)).mean(0)


class _Lira:
    """What the four variants share."""

    name: str
    requires = SHADOW_SIGNALS
    access: str
    learns = False
    calibrates = True
    online: bool
    least = 1  # shadows of a kind that each record needs

    def __init__(
        self,
        shadows: int | None = None,
        center: Center = "mean",  # chosen here: with few shadows the median is the noisier of the two by up to pi / 2
    ) -> None:
        if shadows is not None and shadows < 1:
            raise InputError(f"`{self.name}` cannot use {shadows} shadow models; give at least 1, or None for all.")
        if center not in get_args(Center):
            raise InputError(f"`{self.name}` knows no center `{center}`; use `mean` or `median`.")
        self.shadows, self.center = shadows, center
        self.pooled: dict[bool, Tensor] = {}

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Pool the variances of the shadows' confidences over these records, IN and OUT apart.

        Args:
            members: Signals of records known to be members of the target.
            nonmembers: Signals of records known not to be.
            seed: Nothing is drawn.

        Raises:
            InputError: the signals lack what the attack reads, no record has an IN or an OUT shadow, or members and
                non-members were observed under different numbers of queries.
        """
        both = [shadow_evidence(x, self.name, self.shadows) for x in (members, nonmembers)]
        queries = [part.target.shape[1] for part in both]
        if queries[0] != queries[1]:
            raise InputError(
                f"`{self.name}` was given {queries[0]} queries a member but {queries[1]} a non-member to fit on; observe "
                "both with the same number of queries."
            )
        self.pooled = {}
        for inside in (False, True) if self.online else (False,):
            variance = pooled_variance(both, inside, both[0] if inside else both[1])
            if variance is None:
                raise InputError(
                    f"The attack `{self.name}` was given no record with an {'IN' if inside else 'OUT'} shadow to fit "
                    "on; train shadow models on random halves of the records, those to fit on included."
                )
            self.pooled[inside] = variance.clamp_min(_SMALLEST_VARIANCE)
        return True

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the log likelihood ratio (online) or the exceedance in standard deviations (offline) of each record.

        Raises:
            InputError: the signals lack what the attack reads, a record has too few IN or OUT shadows, or the queries
                are not those fitted on.
            RuntimeError: `fit` was not called.
        """
        if not self.pooled:
            raise RuntimeError(f"{self.name}.score was called before fit; fit it on records of known membership.")
        evidence = shadow_evidence(signals, self.name, self.shadows)
        fitted = len(self.pooled[False])
        if evidence.target.shape[1] != fitted:
            raise InputError(
                f"`{self.name}` was fitted on {fitted} queries a record but is to score {evidence.target.shape[1]}; "
                "observe both with the same number of queries."
            )
        require_shadows(evidence, self.name, self.least if self.online else 0, self.least, self._remedy())
        mean_out, variance_out = self._normal(evidence, inside=False)
        if not self.online:
            return one_sided_exceedance(evidence.target, mean_out, variance_out)
        mean_in, variance_in = self._normal(evidence, inside=True)
        return gaussian_log_ratio(evidence.target, mean_in, variance_in, mean_out, variance_out)

    def _remedy(self) -> str:
        return "train more shadow models"

    def _normal(self, evidence: ShadowEvidence, inside: bool) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each record and query."""
        own = moments(evidence, inside, self.center)
        return own.centre, self._variance(own, self.pooled[inside])

    def _variance(self, own: Moments, pooled: Float[Tensor, " queries"]) -> Float[Tensor, "records queries"]:
        return pooled.expand_as(own.centre)


class _LiraPerRecord(_Lira):
    """The variants that estimate a variance of each record."""

    least = 2

    def __init__(
        self,
        shadows: int | None = None,
        center: Center = "mean",  # as above
        variance_floor: float | int = 0.1,  # chosen here: a variance of two values is below it in one record of four,
        # one of sixteen hardly ever, so that it steadies the attack with few shadows and is idle with many
    ) -> None:
        super().__init__(shadows, center)
        if not 0 <= variance_floor < math.inf:
            raise InputError(f"The variance floor of `{self.name}` is {variance_floor}; give a share of at least 0.")
        self.variance_floor = variance_floor

    def _remedy(self) -> str:
        return f"train more shadow models or take `{self.name}_fixed`, for which 1 is enough"

    def _variance(self, own: Moments, pooled: Float[Tensor, " queries"]) -> Float[Tensor, "records queries"]:
        floor = (self.variance_floor * pooled).clamp_min(_SMALLEST_VARIANCE)
        return (own.squares / (own.count - 1).unsqueeze(1)).maximum(floor)


class LiraOnline(_LiraPerRecord):
    """Compares the target's confidence with normal laws fitted to each record's own IN and OUT shadow models.

    The score is log N(phi | mean_in, var_in) - log N(phi | mean_out, var_out), summed over the queries as if they were
    independent given the record. The paper fits a joint normal law instead. A record's own covariance has more entries
    than there are shadows; one pooled over records can be inverted, but then each difference between views counts as
    much as their common level, estimation error included: in simulations with 4 to 8 shadows that lost 0.01 to 0.08 of
    AUROC, and with 32 it gained only in the true-positive rate at a low false-positive rate.

    At least two IN and two OUT shadows of every record are needed; with few shadows (the paper: fewer than about 64) the
    variant of fixed variance is the stronger one.

    Args:
        shadows: Only the first so many shadow models are used; all where None.
        center: ``"mean"``, or ``"median"`` as in the authors' released code.
        variance_floor: Least variance of a record as a share of the variance pooled over the records fitted on.

    Example:
        >>> phi = torch.tensor([[[1.0], [3.0], [5.0], [7.0]]] * 2, dtype=torch.float64)
        >>> given = Signals(
        ...     ("a", "b"),
        ...     logits=torch.tensor([[[6.0, 0.0]], [[2.0, 0.0]]]),
        ...     labels=torch.tensor([0, 0]),
        ...     shadow_confidence=phi,
        ...     shadow_in=torch.tensor([[False, False, True, True]] * 2),
        ... )
        >>> attack = LiraOnline()
        >>> attack.fit(given, given)
        True
        >>> attack.score(given)
        tensor([ 4., -4.], dtype=torch.float64)

    Source:
        arXiv 2112.03570, algorithm 1.
    """

    name = "lira_online"
    access = "class scores, and shadow models trained with and without each record"
    online = True


class LiraOnlineFixed(_Lira):
    """The online likelihood-ratio attack with one IN and one OUT variance for all records.

    The variances are pooled within records over the records fitted on, with sum (n_r - 1) degrees of freedom; the
    authors' code takes the variance over all records and shadows at once, which also holds the spread between records.
    One IN and one OUT shadow of every record are enough.

    Args:
        shadows: Only the first so many shadow models are used; all where None.
        center: ``"mean"``, or ``"median"`` as in the authors' released code.

    Source:
        arXiv 2112.03570, algorithm 1 with the global variance of its section on few shadow models.
    """

    name = "lira_online_fixed"
    access = LiraOnline.access
    online = True


class LiraOffline(_LiraPerRecord):
    """Measures how far the target's confidence exceeds that of shadow models which never saw the record.

    The paper's score is P[Z < (phi - mean_out) / sd_out] with a standard normal Z; ours rises with it and does not
    saturate (see `one_sided_exceedance`, also for several queries). At least two OUT shadows of every record are needed;
    IN shadows are not read.

    Args:
        shadows: Only the first so many shadow models are used; all where None.
        center: ``"mean"``, or ``"median"`` as in the authors' released code.
        variance_floor: Least variance of a record as a share of the variance pooled over the records fitted on.

    Source:
        arXiv 2112.03570, offline variant.
    """

    name = "lira_offline"
    access = "class scores, and shadow models trained without the records"
    online = False


class LiraOfflineFixed(_Lira):
    """The offline likelihood-ratio attack with one OUT variance for all records; one OUT shadow of each is enough.

    Args:
        shadows: Only the first so many shadow models are used; all where None.
        center: ``"mean"``, or ``"median"`` as in the authors' released code.

    Source:
        arXiv 2112.03570, offline variant with the global variance of its section on few shadow models.
    """

    name = "lira_offline_fixed"
    access = LiraOffline.access
    online = False
