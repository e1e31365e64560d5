"""Stratified bootstrap of membership metrics: over records, and over split seeds then records."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.roc import OperatingPoints, operating_points

__all__ = ["Scores", "Statistic", "named_statistic", "percentile_interval", "record_replicates", "seed_replicates"]

Scores = tuple[Tensor, Tensor]
"""One attack on one model: scores of members, scores of non-members."""

Statistic = str | Callable[[OperatingPoints], Tensor]
"""``auroc``, ``tpr_at_fpr_0.05`` and the like, or a function of `OperatingPoints` returning one number a resample."""

_BLOCK = 2_000_000  # numbers in one table of counts: 16 MB in float64


def named_statistic(statistic: Statistic) -> Callable[[OperatingPoints], Tensor]:
    """Return the function of a statistic's name.

    Raises:
        InputError: no such statistic.
    """
    if not isinstance(statistic, str):
        return statistic
    if statistic == "auroc":
        return OperatingPoints.auroc
    prefix, _, rate = statistic.rpartition("_")
    if prefix == "tpr_at_fpr":
        return lambda points: points.tpr_at_fpr(float(rate))
    raise InputError(f"`{statistic}` is no membership statistic; use `auroc`, `tpr_at_fpr_<rate>` or a function.")


def _resampled_counts(n: int, resamples: int, generator: torch.Generator) -> Float[Tensor, "resamples n"]:
    index = torch.randint(n, (resamples, n), generator=generator)
    ones = torch.ones(1, dtype=torch.float64).expand(resamples, n)
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, index, ones)


def _blocks(total: int, width: int) -> Iterator[int]:
    size = max(1, _BLOCK // max(1, width))
    while total > 0:
        yield min(size, total)
        total -= size


def record_replicates(
    arms: Sequence[Scores],
    statistic: Callable[[OperatingPoints], Tensor],
    replicates: int,
    generator: torch.Generator,
) -> list[Float[Tensor, "replicates ..."]]:
    """Return a statistic over resamples of the records, members and non-members drawn apart.

    Args:
        arms: Scores of the same records in the same order under one or more models; each resample draws the same
            records in every arm, which is what makes a difference of arms paired.
        statistic: Function of the operating points.
        replicates: Number of resamples.
        generator: Source of randomness.
    """
    sizes = {(len(member), len(nonmember)) for member, nonmember in arms}
    if len(sizes) != 1:
        raise InputError(
            f"A paired comparison needs scores of the same records on both sides, but the sizes (members, non-members) "
            f"are {sorted(sizes)}; compare runs of one split seed."
        )
    n_member, n_nonmember = next(iter(sizes))
    parts: list[list[Tensor]] = [[] for _ in arms]
    for block in _blocks(replicates, n_member + n_nonmember):
        member_counts = _resampled_counts(n_member, block, generator)
        nonmember_counts = _resampled_counts(n_nonmember, block, generator)
        for out, (member, nonmember) in zip(parts, arms, strict=True):
            out.append(statistic(operating_points(member, nonmember, member_counts, nonmember_counts)))
    return [torch.cat(part) for part in parts]


def seed_replicates(
    seeds: Sequence[Sequence[Scores]],
    statistic: Callable[[OperatingPoints], Tensor],
    replicates: int,
    generator: torch.Generator,
) -> Float[Tensor, " replicates"]:
    """Return the seed-averaged statistic (difference: first arm minus second) over resamples of seeds, then records.

    Args:
        seeds: For each split seed, one arm or two.
        statistic: Function of the operating points.
        replicates: Number of resamples.
        generator: Source of randomness.
    """
    n = len(seeds)
    # A seed drawn twice into one resample must not bring the same resampled records twice: one bank a draw position.
    bank = torch.empty(n, n, replicates, dtype=torch.float64)
    for i, arms in enumerate(seeds):
        values = record_replicates(arms, statistic, n * replicates, generator)
        bank[i] = (values[0] if len(values) == 1 else values[0] - values[1]).view(n, replicates)
    drawn = torch.randint(n, (n, replicates), generator=generator)
    return bank.gather(0, drawn.unsqueeze(0)).squeeze(0).mean(0)


def percentile_interval(replicates: Shaped[Tensor, " replicates"], level: float = 0.95) -> tuple[float, float]:
    """Return the ends of the central interval of a bootstrap distribution."""
    tail = (1 - level) / 2
    low, high = torch.quantile(replicates.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
