"""The attribute inferences by name, on what was observed of groups of records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.attribute.inference import AttributeRecords, infer_from_confidence
from lightning_privacy.attacks.attribute.own_kind import infer_by_own_kind
from lightning_privacy.callbacks.audits.signals import available_signals, missing_signals
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = [
    "ACCESS",
    "ATTRIBUTE_ATTACKS",
    "FROM_CONFIDENCE",
    "FROM_OUTPUTS",
    "ObservedGroup",
    "check_attack_names",
    "choose_attribute_attacks",
    "difference_on_own",
    "join",
    "run_attack",
]

FROM_OUTPUTS = {"attribute_scores": "logits", "attribute_embedding": "embedding"}
FROM_CONFIDENCE = {"attribute_confidence": False, "attribute_confidence_prior": True}
ACCESS = {
    "attribute_scores": "class scores of the record, and of members and others whose attribute is known",
    "attribute_embedding": "the model's embedding of the record, and of members and others whose attribute is known",
}
ATTRIBUTE_ATTACKS = (*FROM_OUTPUTS, *FROM_CONFIDENCE)
"""Probes of what the model answers; and, for a model that reads the attribute, which value makes it surest."""


def choose_attribute_attacks(names: Sequence[str] | None, module: Any, reads_attribute: bool = False) -> list[str]:
    """Return the attacks that run on a module.

    Args:
        names: Asked for; None for those from confidence where the model reads the attribute, else for those from what
            the module gives of its scores and its embedding.
        module: The audited module.
        reads_attribute: Whether the attribute is among the model's inputs.

    Raises:
        InputError: an unknown name, one twice, or an attack from confidence on a model that does not read the attribute.
        MissingProtocolError: the module lacks what an attack needs.

    Example:
        >>> from types import SimpleNamespace
        >>> choose_attribute_attacks(None, SimpleNamespace(logits=len))
        ['attribute_scores']
    """
    available = available_signals(module)
    if names is None:
        answers = [name for name, field in FROM_OUTPUTS.items() if field in available]
        names = list(FROM_CONFIDENCE) if reads_attribute else answers or ["attribute_scores"]
    check_attack_names(names, reads_attribute)
    for name in names:
        field = FROM_OUTPUTS.get(name, "logits")
        if field not in available:
            raise missing_signals(module, {field}, name)
    return list(names)


def check_attack_names(names: Sequence[str], reads_attribute: bool) -> None:
    """Refuse names that are no attacks on such a model.

    Args:
        names: Of attacks.
        reads_attribute: Whether the attribute is among the model's inputs.

    Raises:
        InputError: an unknown name, one twice, or an attack from confidence on a model that does not read the attribute.
    """
    unknown = [name for name in names if name not in ATTRIBUTE_ATTACKS]
    if unknown or not names or len(set(names)) < len(names):
        raise InputError(
            f"An attribute audit needs attacks of different names, at least one, of {', '.join(ATTRIBUTE_ATTACKS)}, but "
            f"was given {list(names)}."
        )
    blind = [name for name in names if name in FROM_CONFIDENCE and not reads_attribute]
    if blind:
        raise InputError(
            f"The attack `{blind[0]}` asks the model about every value of the attribute, so the model must read it: set "
            "`reads_attribute: true` where it is among the model's inputs, else leave the attack out."
        )


@dataclass(frozen=True)
class ObservedGroup:
    """Records, and what the model says of them.

    Args:
        records: Their attribute, class and known features.
        answers: What the model gives of them as they are, by the attack that reads it.
        with_value: Class scores with the attribute of all set to a value, by value.
    """

    records: AttributeRecords
    answers: Mapping[str, Float[Tensor, "records dim"]]
    with_value: Mapping[int, Float[Tensor, "records classes"]]

    def scores_with(self, value: int) -> Float[Tensor, "records classes"]:
        """Return the class scores of the records with the attribute set to a value."""
        return self.with_value[value]

    def take(self, rows: Int[Tensor, " rows"]) -> "ObservedGroup":
        """Return some of the records."""
        r = self.records
        return ObservedGroup(
            AttributeRecords(r.known[rows], r.labels[rows], r.sensitive[rows]),
            {name: x[rows] for name, x in self.answers.items()},
            {value: x[rows] for value, x in self.with_value.items()},
        )


def join(one: ObservedGroup, two: ObservedGroup) -> ObservedGroup:
    """Return the records of two groups as one."""
    a, b = one.records, two.records
    return ObservedGroup(
        AttributeRecords(
            torch.cat([a.known, b.known]), torch.cat([a.labels, b.labels]), torch.cat([a.sensitive, b.sensitive])
        ),
        {name: torch.cat([x, two.answers[name]]) for name, x in one.answers.items()},
        {value: torch.cat([x, two.with_value[value]]) for value, x in one.with_value.items()},
    )


def run_attack(
    name: str,
    members: ObservedGroup,
    others: ObservedGroup,
    aux: ObservedGroup,
    own_others: ObservedGroup,
    values: Sequence[int],
    seed: int,
    split_hash: str = "",
) -> AttackResult:
    """Run one attack.

    Args:
        name: Of `ATTRIBUTE_ATTACKS`.
        members: Judged records of the training data.
        others: Judged records outside of it.
        aux: Members whose attribute the attacker knows, none of them judged.
        own_others: Non-members whose attribute it knows, none of them judged.
        values: That the attribute can have.
        seed: Of fits and bootstrap.
        split_hash: sha256 of the split record.
    """
    options = {"seed": seed, "split_hash": split_hash}
    if name in FROM_CONFIDENCE:
        scores = (members.scores_with, others.scores_with)
        # The imputation never sees the model, so it may learn from members too.
        population = join(aux, own_others).records
        prior = FROM_CONFIDENCE[name]
        return infer_from_confidence(
            scores, members.records, others.records, population, values, use_prior=prior, **options
        )
    groups = (members, others, aux, own_others)
    answers, records = [x.answers[name] for x in groups], [x.records for x in groups]
    return infer_by_own_kind(name, ACCESS[name], answers, records, values, **options)


def difference_on_own(
    name: str, aux: ObservedGroup, own_others: ObservedGroup, values: Sequence[int], seed: int
) -> float:
    """Return members minus others in accuracy on the attacker's own records, each half judged by the other.

    Args:
        name: Of `ATTRIBUTE_ATTACKS`.
        aux: Members whose attribute the attacker knows.
        own_others: Non-members whose attribute it knows.
        values: That the attribute can have.
        seed: Of halves and fits.
    """
    halves = []
    for place, group in enumerate((aux, own_others)):
        n = len(group.records.sensitive)
        order = torch.randperm(n, generator=seeded_generator(seed, "attribute halves", place))
        halves.append((group.take(order[: n // 2]), group.take(order[n // 2 :])))
    found = []
    for here, there in ((0, 1), (1, 0)):
        judged, own = [half[here] for half in halves], [half[there] for half in halves]
        result = run_attack(name, judged[0], judged[1], own[0], own[1], values, seed)
        found.append(result.metrics["member_minus_nonmember"].value)
    return sum(found) / 2
