"""Running attribute inference on one model: learnt on the attacker's records, judged on records nobody fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_privacy.attacks.attribute.inference import AttributeRecords
from lightning_privacy.callbacks.audits.attribute_attacks import (
    FROM_CONFIDENCE,
    FROM_OUTPUTS,
    ObservedGroup,
    choose_attribute_attacks,
    difference_on_own,
    join,
    run_attack,
)
from lightning_privacy.callbacks.audits.attribute_records import attribute_values, read_records
from lightning_privacy.callbacks.audits.declared_attribute import DeclaredAttribute, SplitWithValue
from lightning_privacy.callbacks.audits.membership_audit import ROLES, AuditedModel
from lightning_privacy.callbacks.audits.signals import compute_signals
from lightning_privacy.callbacks.audits.split_access import check_roles
from lightning_privacy.callbacks.audits.untouched import on_rank_zero
from lightning_privacy.core.results import AttackResult, Signals
from lightning_privacy.errors import InputError

__all__ = ["audit_attribute"]

_UNREAD = (
    "The model's class scores are the same for every value of the attribute: it does not read it, and this attack can "
    "only name the likeliest value of anyone."
)


def audit_attribute(
    module: L.LightningModule,
    split: Any,
    declared: DeclaredAttribute,
    attacks: Sequence[str] | None = None,
    *,
    reads_attribute: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    records: Mapping[str, AttributeRecords] | None = None,
    model: AuditedModel | None = None,
) -> list[AttackResult]:
    """Infer the attribute of ``eval_member`` and of ``holdout``; every rank must call and gets the results.

    The attacker knows the attribute of ``aux_member`` and of ``attack_nonmember``, and learns to read members off the
    first, others off the second (see `infer_by_own_kind`). That an attribute can be guessed is no leak of the training
    data; the difference of members and hold-out is.

    Args:
        module: The audited module.
        split: The set-up `MembershipSplit` it was trained with.
        declared: The sensitive attribute.
        attacks: Of `ATTRIBUTE_ATTACKS`; None for those that suit the model.
        reads_attribute: Whether the attribute is among the model's inputs.
        seed: Of fits, halves and bootstrap.
        batch_size: Records at once; the datamodule's own if None.
        records: What `read_records` gave for the four roles; read here if None.
        model: What the results say about the model.

    Returns:
        One result an attack. `strongest` marks the one with the largest difference of members and others on the
        attacker's own records, each half judged by the other.

    Raises:
        InputError: the attribute is absent, malformed or constant, or the model's answers are not finite.
        MissingProtocolError: the module lacks what an attack needs.
        SplitError: a role is empty or a loader is out of order.
    """
    names = choose_attribute_attacks(attacks, module, reads_attribute)
    check_roles(split, ROLES, "An attribute audit")
    if records is None:
        records = read_records(module, split, ROLES, declared, batch_size)
    each = [records[role] for role in ROLES]
    values = attribute_values(each[:2], each[2:], declared.name)
    groups = _observe(module, split, declared, records, values, names, batch_size)
    about = model or AuditedModel()
    return on_rank_zero(lambda: _attack_all(names, groups, values, declared.name, split.split_hash, seed, about))


def _observe(
    module: L.LightningModule,
    split: Any,
    declared: DeclaredAttribute,
    records: Mapping[str, AttributeRecords],
    values: Sequence[int],
    names: Sequence[str],
    batch_size: int | None,
) -> list[ObservedGroup]:
    fields = {FROM_OUTPUTS[name] for name in names if name in FROM_OUTPUTS}
    seen: dict[str, Signals] = {}
    if fields:
        seen = compute_signals(module, split, ROLES, fields, batch_size=batch_size)
    asked: dict[int, dict[str, Signals]] = {}
    if set(names) & set(FROM_CONFIDENCE):
        for value in values:
            changed = SplitWithValue(split, declared, value)
            asked[value] = compute_signals(module, changed, ROLES, {"logits"}, batch_size=batch_size)
    groups = []
    for role in ROLES:
        answers: dict[str, Tensor] = {}
        if "logits" in fields:
            answers["attribute_scores"] = _finite(seen[role].logits, "class scores")[:, 0].double().log_softmax(1)
        if "embedding" in fields:
            answers["attribute_embedding"] = _finite(seen[role].embedding, "embedding").double()
        with_value = {v: _finite(signals[role].logits, "class scores")[:, 0] for v, signals in asked.items()}
        groups.append(ObservedGroup(records[role], answers, with_value))
    return groups


def _finite(observed: Tensor | None, what: str) -> Tensor:
    if observed is None or not observed.isfinite().all():
        raise InputError(
            f"The model's {what} are not finite, so that no attribute can be inferred from them; look for NaN in the "
            "audited model."
        )
    return observed


def _attack_all(
    names: Sequence[str],
    groups: Sequence[ObservedGroup],
    values: Sequence[int],
    attribute: str,
    split_hash: str,
    seed: int,
    about: AuditedModel,
) -> list[AttackResult]:
    aux, others, member, holdout = groups
    differences = {name: difference_on_own(name, aux, others, values, seed) for name in names}
    top = max(names, key=lambda name: differences[name])
    counts = join(aux, others).records.sensitive.unique(return_counts=True)
    first = list(member.with_value.values())[:1]
    unread = all(torch.equal(first[0], scores) for scores in member.with_value.values()) if first else False
    results = []
    for name in names:
        result = run_attack(name, member, holdout, aux, others, values, seed, split_hash)
        notes = [_UNREAD] if unread and name in FROM_CONFIDENCE else []
        if not result.converged:
            notes.append(f"The attacker `{name}` did not converge: a longer fit might find more.")
        results.append(
            replace(
                result,
                n={"member": len(member.records.sensitive), "holdout": len(holdout.records.sensitive)},
                strongest=name == top,
                step=about.step,
                epoch=about.epoch,
                notes=(*result.notes, *notes, *about.notes),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                extra={
                    **result.extra,
                    "attribute": attribute,
                    "values": {str(value): n for value, n in zip(*(x.tolist() for x in counts), strict=True)},
                    "fit": {"member": len(aux.records.sensitive), "nonmember": len(others.records.sensitive)},
                    "fit_member_minus_nonmember": differences[name],
                    **(about.extra or {}),
                },
            )
        )
    return results
