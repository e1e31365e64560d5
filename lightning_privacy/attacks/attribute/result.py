"""The outcome of an attribute inference beside what anyone could have guessed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.bootstrap import percentile_interval

__all__ = ["Guesses", "attribute_result"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Guesses:
    """Guesses on one group of records.

    Args:
        true: The sensitive attribute.
        attack: What the attack on the model says.
        imputed: What the model of the population says, without the audited model.
    """

    true: Int[Tensor, " records"]
    attack: Int[Tensor, " records"]
    imputed: Int[Tensor, " records"]


def attribute_result(
    name: str,
    access: str,
    members: Guesses,
    nonmembers: Guesses,
    majority: int,
    *,
    seed: int = 0,
    split_hash: str = "",
    converged: bool = True,
    notes: Sequence[str] = (),
) -> AttackResult:
    """Return accuracies on members and others, those of the baselines, and what the attack adds to them.

    An attribute that follows from the other attributes can be guessed for anyone, trained on or not. Two differences
    say whether training on a record betrays it: the attack against imputation on members (``above_imputation_member``)
    and members against others (``member_minus_nonmember``). Both must exceed zero.

    Args:
        name: Of the attack.
        access: What the attacker must have.
        members: Guesses on records of the training data.
        nonmembers: Guesses on others.
        majority: The most frequent value of the population.
        seed: Of the attack and of the bootstrap.
        split_hash: sha256 of the split record.
        converged: Whether the attacker's fit converged.
        notes: Sentences a reader must see.

    Returns:
        Metrics ``accuracy_{member,nonmember}``, ``majority_{...}``, ``imputation_{...}`` with Clopper-Pearson
        intervals, and
        ``above_imputation_{...}`` and ``member_minus_nonmember`` with bootstrap intervals.

    Raises:
        InputError: a group is empty.

    Source:
        arXiv 2209.01292 (an inference no better than imputation is no leak of the training data).
    """
    if not len(members.true) or not len(nonmembers.true):
        raise InputError(
            f"The attribute inference `{name}` compares members with others, but there are {len(members.true)} and "
            f"{len(nonmembers.true)} records."
        )
    metrics: dict[str, Metric] = {}
    right: dict[str, Tensor] = {}
    for group, guesses in (("member", members), ("nonmember", nonmembers)):
        right[group] = guesses.attack == guesses.true
        imputed = guesses.imputed == guesses.true
        metrics[f"accuracy_{group}"] = _share(right[group])
        metrics[f"majority_{group}"] = _share(guesses.true == majority)
        metrics[f"imputation_{group}"] = _share(imputed)
        generator = torch.Generator().manual_seed(seed)
        gain = right[group].double() - imputed.double()
        metrics[f"above_imputation_{group}"] = _metric(float(gain.mean()), _means(gain, generator))
    generator = torch.Generator().manual_seed(seed)
    values = [right[group].double() for group in ("member", "nonmember")]
    means = [_means(x, generator) for x in values]
    metrics["member_minus_nonmember"] = _metric(float(values[0].mean() - values[1].mean()), means[0] - means[1])
    return AttackResult(
        family="attribute",
        attack=name,
        access=access,
        seed=seed,
        split_hash=split_hash,
        n={"member": len(members.true), "nonmember": len(nonmembers.true)},
        metrics=metrics,
        converged=converged,
        notes=(*notes, *_reading(metrics)),
        extra={"majority": majority},
    )


def _share(right: Bool[Tensor, " n"]) -> Metric:
    hits = int(right.sum())
    low, high = clopper_pearson(hits, len(right))
    return Metric(hits / len(right), float(low), float(high))


def _means(values: Tensor, generator: torch.Generator) -> Tensor:
    index = torch.randint(len(values), (_RESAMPLES, len(values)), generator=generator)
    return values.cpu()[index].mean(1)


def _metric(value: float, replicates: Tensor) -> Metric:
    return Metric(value, *percentile_interval(replicates))


def _reading(metrics: dict[str, Metric]) -> list[str]:
    notes = []
    if (metrics["above_imputation_member"].low or 0.0) <= 0:
        notes.append(
            "On members the attack is not shown to beat a model of the population: what it infers could be inferred of "
            "anyone."
        )
    if (metrics["member_minus_nonmember"].low or 0.0) <= 0:
        notes.append("The attack is not shown to do better on members than on others.")
    return notes
