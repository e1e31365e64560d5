"""Attribute inference from what a model answers, members and others each by a probe that has seen their own kind."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.attribute.inference import AttributeRecords
from lightning_privacy.attacks.attribute.population_model import fit_attribute_model
from lightning_privacy.attacks.attribute.result import Guesses, attribute_result
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = ["infer_by_own_kind"]

Answers = Float[Tensor, "..."]
"""One row a record; the groups differ in their number of records."""


def infer_by_own_kind(
    name: str,
    access: str,
    answers: Sequence[Answers],
    records: Sequence[AttributeRecords],
    candidates: Sequence[int],
    *,
    seed: int = 0,
    split_hash: str = "",
) -> AttackResult:
    """Attack members with a probe learnt on other members, and non-members with one learnt on other non-members.

    What training stores of a record shows in members' answers alone: a probe that was learnt on non-members cannot read
    it, and one learnt on both is held back by those of whom nothing is stored. Judging non-members by the members' probe
    instead would count it as a leak that training moves all members' answers alike. Both probes get equally many records,
    so that neither is the better for their number; the imputation gets all of the attacker's.

    Args:
        name: Of the attack.
        access: What the attacker must have.
        answers: What the model gives (an embedding, class scores) of members, others, own members, own others; each of
            shape (records, dim).
        records: The same four groups, one record a row of their answers. The last two are the attacker's own; they and
            the first two have no record in common.
        candidates: Values that the attribute can have.
        seed: Of the fits, the choice of equally many records and the intervals.
        split_hash: sha256 of the split record.

    Returns:
        As `attribute_result`; ``extra`` counts the records that each probe was learnt on.

    Raises:
        InputError: the groups are not four, not one row a record, or the attacker has fewer than four records of a kind.

    Source:
        arXiv 1805.04049 (attributes from representations); the baseline, arXiv 2209.01292. A probe for each kind is ours.
    """
    if len(answers) != 4 or [len(x) for x in answers] != [len(x.labels) for x in records]:
        raise InputError(
            f"The attack `{name}` takes four groups, one answer a record, but was given {[len(x) for x in answers]} answers "
            f"for {[len(x.labels) for x in records]} records."
        )
    classes = 1 + max(int(group.labels.max()) for group in records if len(group.labels))
    own = torch.cat([group.features(classes) for group in records[2:]])
    imputation = fit_attribute_model(own, torch.cat([group.sensitive for group in records[2:]]), candidates, seed)
    count = min(len(group.labels) for group in records[2:])
    converged, guesses = imputation.converged, []
    for judged in (0, 1):
        known = judged + 2
        rows = torch.randperm(len(answers[known]), generator=seeded_generator(seed, "own kind", judged))[:count].sort()[
            0
        ]
        probe = fit_attribute_model(answers[known][rows], records[known].sensitive[rows], candidates, seed)
        converged = converged and probe.converged
        imputed = imputation.infer(records[judged].features(classes))
        guesses.append(Guesses(records[judged].sensitive, probe.infer(answers[judged]), imputed))
    result = attribute_result(
        name, access, guesses[0], guesses[1], imputation.majority, seed=seed, split_hash=split_hash, converged=converged
    )
    return replace(result, extra={**result.extra, "learnt_on": count})
