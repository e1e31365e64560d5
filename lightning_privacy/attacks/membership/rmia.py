"""The robust membership-inference attack: how many known non-members a record dominates in relative likelihood."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_privacy.attacks.membership.shadow_evidence import (
    SHADOW_SIGNALS,
    ShadowEvidence,
    first_of_each,
    require_shadows,
    shadow_evidence,
)
from lightning_privacy.core.results import Signals
from lightning_privacy.errors import InputError

__all__ = ["RmiaOffline", "RmiaOnline", "dominated", "dominated_by_vote", "log_mean_probability", "share_of_population"]

Queries = Literal["mean", "vote"]
_PAIRS = 2**22  # pairs (x, z) compared at once: 4 MiB a mask


def log_mean_probability(
    phi: Float[Tensor, "records shadows queries"], weights: Float[Tensor, "records shadows"], certain: float | int = 0
) -> Float[Tensor, "records queries"]:
    """Return log(certain + sum_k w_k sigmoid(phi_k)), to full relative precision at both ends.

    Near one it is computed as log(1 - sum_k w_k sigmoid(-phi_k)): where all models are sure of the true class, the
    probabilities themselves round to one, and with them every ratio.

    Args:
        phi: log(p / (1 - p)) of each model.
        weights: w_k >= 0; with ``certain`` they sum to one.
        certain: Weight of a model of probability one.

    Example:
        >>> log_mean_probability(torch.tensor([[[0.0], [50.0]]]), torch.tensor([[0.5, 0.5]])).exp().item()
        0.75
    """
    w = weights.unsqueeze(2)
    rest = (w * torch.sigmoid(-phi)).sum(1)
    low = (w.log() + F.logsigmoid(phi)).logsumexp(1)
    if certain:
        low = torch.logaddexp(low, low.new_tensor(math.log(certain)))
    return torch.where(rest < 0.5, torch.log1p(-rest), low)


def dominated(
    log_ratio: Float[Tensor, " records"], population: Float[Tensor, " population"], gamma: float | int
) -> Int[Tensor, " records"]:
    """Return for each x the number of z with log_ratio(x) - log_ratio(z) > log gamma.

    By binary search in the sorted population: no table of pairs is made.

    Example:
        >>> dominated(torch.tensor([0.5, 2.0]), torch.tensor([0.0, 0.5, 1.0]), gamma=1)
        tensor([1, 3])
    """
    return torch.searchsorted(population.sort().values, log_ratio - math.log(gamma))


def dominated_by_vote(
    log_ratio: Float[Tensor, "records queries"], population: Float[Tensor, "population queries"], gamma: float | int
) -> Int[Tensor, " records"]:
    """Return for each x the number of z which it dominates in more than half of the queries.

    Example:
        >>> x, z = torch.tensor([[1.0, 1.0, -5.0]]), torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, -9.0]])
        >>> dominated_by_vote(x, z, gamma=1)
        tensor([1])
    """
    counts = []
    for block in (log_ratio - math.log(gamma)).split(max(1, _PAIRS // max(1, len(population)))):
        votes = torch.zeros(len(block), len(population), dtype=torch.uint8, device=block.device)
        for own, theirs in zip(block.T, population.T, strict=True):
            votes += own.unsqueeze(1) > theirs
        counts.append(torch.count_nonzero(votes > block.shape[1] // 2, dim=1))
    return torch.cat(counts) if counts else torch.zeros(0, dtype=torch.long)


def share_of_population(
    count: Int[Tensor, " records"], log_ratio: Float[Tensor, " records"], population: int
) -> Float[Tensor, " records"]:
    """Return (count + h) / (population + 1), where h in (0, 1) rises with the log ratio and only orders equal counts.

    With a few hundred z most members dominate them all, and the count alone would tie them. Any rising h below one
    leaves records of different counts in their order; r / (1 + |r|) resolves ratios over hundreds of nats.

    Args:
        count: Number of dominated z.
        log_ratio: Mean log ratio of each record.
        population: Number of z.

    Example:
        >>> share_of_population(torch.tensor([3, 3, 2]), torch.tensor([0.0, 1.0, 90.0]), population=3)
        tensor([0.8750, 0.9362, 0.7462])
    """
    h = 0.5 + 0.49 * log_ratio / (1 + log_ratio.abs())
    return (count + h) / (population + 1)


class _Rmia:
    """What the two variants share."""

    name: str
    requires = SHADOW_SIGNALS
    access: str
    learns = False
    calibrates = True
    slope: float | int | None = None  # of p_IN in p_OUT; None where IN models are at hand

    def __init__(self, references: int | None, gamma: float | int, temperature: float | int, queries: Queries) -> None:
        if references is not None and references < 1:
            raise InputError(
                f"`{self.name}` cannot use {references} reference models; give at least 1, or None for all."
            )
        for what, value in (("gamma", gamma), ("temperature", temperature)):
            if not 0 < value < math.inf:
                raise InputError(f"The {what} of `{self.name}` is {value}; give a positive number.")
        if queries not in get_args(Queries):
            raise InputError(f"`{self.name}` cannot combine queries by `{queries}`; use `mean` or `vote`.")
        self.references, self.gamma, self.temperature, self.queries = references, gamma, temperature, queries
        self.population: Tensor | None = None

    def fit(self, members: Signals, nonmembers: Signals, seed: int = 0) -> bool:
        """Take the non-members as the population z; nothing is learned of the members.

        Args:
            members: Signals of records known to be members of the target; checked for what the attack reads.
            nonmembers: Signals of records known not to be.
            seed: Nothing is drawn.

        Raises:
            InputError: the signals lack what the attack reads, a record of the population has too few reference models,
                or there is none.
        """
        shadow_evidence(members, self.name)
        if not len(nonmembers):
            raise InputError(f"`{self.name}` has no population to compare with; give it non-members to fit on.")
        self.population = self.log_ratios(nonmembers)
        return True

    def score(self, signals: Signals) -> Float[Tensor, " records"]:
        """Return the share of the population that each record dominates, in (0, 1), ties broken by the log ratio.

        Raises:
            InputError: a record has too few reference models, or the queries are not those of the population.
            RuntimeError: `fit` was not called.
        """
        if self.population is None:
            raise RuntimeError(f"{self.name}.score was called before fit; fit it on records of known membership.")
        log_ratio = self.log_ratios(signals)
        if log_ratio.shape[1] != self.population.shape[1]:
            raise InputError(
                f"`{self.name}` was fitted on {self.population.shape[1]} queries a record but is to score "
                f"{log_ratio.shape[1]}; observe both with the same number of queries."
            )
        mean = log_ratio.mean(1)
        if self.queries == "vote":
            count = dominated_by_vote(log_ratio, self.population, self.gamma)
        else:
            count = dominated(mean, self.population.mean(1), self.gamma)
        return share_of_population(count, mean, len(self.population))

    def log_ratios(self, signals: Signals) -> Float[Tensor, "records queries"]:
        """Return log p(x | theta) - log p(x) of each record and query.

        Raises:
            InputError: the signals lack what the attack reads, or a record has too few reference models.
        """
        evidence = shadow_evidence(signals, self.name)
        least = self.references or 1
        remedy = "train more shadow models or ask for fewer references"
        require_shadows(evidence, self.name, least if self.slope is None else 0, least, remedy)
        parts = [
            F.logsigmoid(block.target / self.temperature) - self._log_marginal(block) for block in evidence.blocks()
        ]
        return torch.cat(parts) if parts else evidence.target

    def _log_marginal(self, block: ShadowEvidence) -> Float[Tensor, "records queries"]:
        """Return log p(x)."""
        phi, outside = block.shadows / self.temperature, _average(~block.inside, self.references)
        if self.slope is None:
            return log_mean_probability(phi, (outside + _average(block.inside, self.references)) / 2)
        return log_mean_probability(phi, (1 + self.slope) / 2 * outside, (1 - self.slope) / 2)


class RmiaOnline(_Rmia):
    """Counts the known non-members z that a record x dominates: (p(x | theta) / p(x)) / (p(z | theta) / p(z)) > gamma.

    p(. | theta) = sigmoid(phi) is the target's probability of the true class, p(x) the mean of its average over the IN
    and its average over the OUT reference models; both are computed in logarithms. Equality does not count, as in the
    authors' code: the attacker's own non-members would otherwise each dominate themselves.

    Records of equal counts are ordered by their mean log ratio. With one query, or ``queries="mean"``, the order of the
    scores is therefore that of the mean log ratio alone; z and gamma then set only the scale on which a threshold keeps
    its meaning from model to model.

    Args:
        references: The first so many IN and as many OUT shadow models of each record are used; all where None.
        gamma: Factor by which x must exceed z, positive.
        temperature: Divides phi, which is the softmax temperature between the true class and all others together; above
            one it keeps apart models that are all but certain.
        queries: ``"mean"`` compares log ratios averaged over the queries; ``"vote"`` counts z as dominated if x exceeds
            it in more than half of the queries (the paper's majority vote).

    Source:
        arXiv 2312.03262; for what the ranking reduces to, arXiv 2603.11799.
    """

    name = "rmia_online"
    access = "class scores, and shadow models trained with and without each record"

    def __init__(
        self,
        references: int | None = None,
        gamma: float | int = 1,  # the authors' Privacy Meter
        temperature: float | int = 1,  # plain probabilities, as in the paper's formula
        queries: Queries = "mean",  # chosen here: in simulations its AUROC is that of the vote or higher
    ) -> None:
        super().__init__(references, gamma, temperature, queries)


class RmiaOffline(_Rmia):
    """RMIA with reference models that never saw the record; one is enough.

    The average over IN models is taken to be a p_OUT + (1 - a), so that p(x) = ((1 + a) p_OUT(x) + (1 - a)) / 2. All
    else is as in `RmiaOnline`.

    Args:
        references: The first so many OUT shadow models of each record are used; all where None.
        gamma: Factor by which x must exceed z, positive.
        a: Slope of p_IN in p_OUT, 0 to 1: 1 where training on a record does not raise its probability, 0 where it
            makes it certain.
        temperature: Divides phi, see `RmiaOnline`.
        queries: ``"mean"`` or ``"vote"``, see `RmiaOnline`.

    Example:
        >>> given = Signals(
        ...     ("a", "b"),
        ...     logits=torch.tensor([[[4.0, 0.0]], [[1.0, 0.0]]]),
        ...     labels=torch.tensor([0, 0]),
        ...     shadow_confidence=torch.tensor([[[1.0]], [[1.0]]]),
        ...     shadow_in=torch.tensor([[False], [False]]),
        ... )
        >>> attack = RmiaOffline()
        >>> attack.fit(given, given)
        True
        >>> [round(value, 3) for value in attack.score(given).tolist()]
        [0.525, 0.15]

    Source:
        arXiv 2312.03262, offline attack.
    """

    name = "rmia_offline"
    access = "class scores, and shadow models trained without the records"

    def __init__(
        self,
        references: int | None = None,
        gamma: float | int = 1,  # the authors' Privacy Meter
        a: float | int = 0.33,  # LeakPro's default; Privacy Guard has 0.3, the authors tune it on a reference model
        temperature: float | int = 1,  # plain probabilities, as in the paper's formula
        queries: Queries = "mean",  # chosen here: in simulations its AUROC is that of the vote or higher
    ) -> None:
        if not 0 <= a <= 1:
            raise InputError(f"The slope `a` of `rmia_offline` is {a}; give a number from 0 to 1.")
        super().__init__(references, gamma, temperature, queries)
        self.slope = a


def _average(mask: Bool[Tensor, "records shadows"], references: int | None) -> Float[Tensor, "records shadows"]:
    chosen = first_of_each(mask, references).double()
    return chosen / chosen.sum(1, keepdim=True)
