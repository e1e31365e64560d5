"""The gap between training and held-out loss: a two-sample test, its size, and the parameters that it amounts to."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.bootstrap import percentile_interval

__all__ = ["effective_parameters", "kolmogorov_smirnov", "loss_gap", "mean_gap"]

LEVEL = 0.95
_BLOCK = 4_000_000  # resampled numbers at once: 32 MB in float64


def _check(member: Tensor, heldout: Tensor) -> None:
    if min(len(member), len(heldout)) < 2:
        raise InputError(
            f"A loss gap needs at least two records on either side, but got {len(member)} members and {len(heldout)} "
            "held-out records; raise their shares in MembershipSplit(fractions=...)."
        )
    for name, loss in (("members", member), ("held-out records", heldout)):
        if not bool(loss.isfinite().all()):
            raise InputError(f"The loss of some {name} is not finite, so no gap can be measured; the model diverged.")


def kolmogorov_smirnov(member: Float[Tensor, " members"], heldout: Float[Tensor, " heldout"]) -> tuple[Metric, Metric]:
    """Return the two-sample Kolmogorov-Smirnov distance D = max |F_member - F_heldout| and its two-sided p-value.

    The p-value is exact where that is feasible and asymptotic else, as scipy decides. The interval of D is that of
    Dvoretzky, Kiefer, Wolfowitz and Massart: with probability 95 % neither empirical distribution is further than
    sqrt(ln(4 / 0.05) / (2 n)) from its own, so that D is not further than the sum of both from the true distance.

    Args:
        member: Loss of each training record.
        heldout: Loss of each record that was not trained on.

    Raises:
        InputError: fewer than two records on a side, or losses that are not finite.

    Example:
        >>> distance, p = kolmogorov_smirnov(torch.arange(4.0), torch.arange(4.0) + 4)
        >>> distance.value, round(p.value, 4)
        (1.0, 0.0286)

    Source:
        Massart, The Annals of Probability 18 (1990); the test as a structural attack: arXiv 2502.09396.
    """
    from scipy.stats import ks_2samp  # half a second to import

    _check(member, heldout)
    test: Any = ks_2samp(member.double().numpy(), heldout.double().numpy())
    distance = float(test.statistic)
    slack = sum(math.sqrt(math.log(4 / (1 - LEVEL)) / (2 * len(side))) for side in (member, heldout))
    return Metric(distance, max(0.0, distance - slack), min(1.0, distance + slack)), Metric(float(test.pvalue))


def mean_gap(
    member: Float[Tensor, " members"],
    heldout: Float[Tensor, " heldout"],
    bootstrap: int = 2000,
    seed: int = 0,
) -> Metric:
    """Return mean held-out loss minus mean training loss, with a 95 % percentile bootstrap over the records.

    Args:
        member: Loss of each training record.
        heldout: Loss of each record that was not trained on.
        bootstrap: Resamples, members and held-out records drawn apart; 0 for no interval.
        seed: Of the resamples.

    Raises:
        InputError: fewer than two records on a side, or losses that are not finite.

    Example:
        >>> mean_gap(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 1.5]), bootstrap=0).value
        1.0
    """
    _check(member, heldout)
    sides = member.double(), heldout.double()
    value = float(sides[1].mean() - sides[0].mean())
    if not bootstrap:
        return Metric(value)
    generator = seeded_generator("mean gap", seed)
    drawn = [_resampled_means(side, bootstrap, generator) for side in sides]
    return Metric(value, *percentile_interval(drawn[1] - drawn[0]))


def _resampled_means(
    values: Float[Tensor, " n"], resamples: int, generator: torch.Generator
) -> Float[Tensor, " resamples"]:
    block = max(1, _BLOCK // len(values))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return torch.cat(
        [values[torch.randint(len(values), (size, len(values)), generator=generator)].mean(1) for size in sizes]
    )


def loss_gap(
    member: Float[Tensor, " members"],
    heldout: Float[Tensor, " heldout"],
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Return the test and the size of the gap between training and held-out loss.

    Args:
        member: Loss of each training record.
        heldout: Loss of each record that was not trained on.
        bootstrap: Resamples behind the interval of the gap.
        seed: Of the resamples.

    Returns:
        ``ks_distance``, ``ks_p_value`` and ``mean_gap``.

    Raises:
        InputError: fewer than two records on a side, or losses that are not finite.

    Example:
        >>> sorted(loss_gap(torch.arange(4.0), torch.arange(4.0) + 4))
        ['ks_distance', 'ks_p_value', 'mean_gap']
    """
    distance, p_value = kolmogorov_smirnov(member, heldout)
    return {
        "ks_distance": distance,
        "ks_p_value": p_value,
        "mean_gap": mean_gap(member, heldout, bootstrap, seed),
    }


def effective_parameters(gap: Metric, trained_on: int) -> dict[str, Metric]:
    """Return how many fitted parameters a gap in mean log loss amounts to: p_eff = n (held-out - training loss).

    A regular model with p parameters, fitted by maximum likelihood to n records, gains p / (2 n) nats a record on its
    training records and loses as much on new ones, so that the gap is p / n (the argument behind Akaike's criterion).
    Read backwards it is a count of degrees of freedom that a network *used*, from its outputs alone; its number of
    weights is only how many it could have used, which for a deep network always exceeds the records and so decides
    nothing. Above n the model spends more than one parameter a record, as an over-confident network does; below 0 is
    noise.

    Args:
        gap: Mean held-out minus mean training cross-entropy in nats, see `mean_gap`.
        trained_on: Records n in the training set.

    Returns:
        ``effective_parameters`` and ``effective_parameters_per_record``.

    Example:
        >>> effective_parameters(Metric(0.25, 0.125, 0.5), 400)["effective_parameters"]
        Metric(value=100.0, low=50.0, high=200.0, valid=True, reason='')

    Source:
        Akaike, IEEE Transactions on Automatic Control 19 (1974); Moody, NIPS 4 (1992), equation 7, for networks.
    """
    times = {"effective_parameters": trained_on, "effective_parameters_per_record": 1}
    return {
        name: Metric(
            factor * gap.value,
            None if gap.low is None else factor * gap.low,
            None if gap.high is None else factor * gap.high,
        )
        for name, factor in times.items()
    }
