"""Attacking the updates of one model: the client computes them, attackers get nothing else of its records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_privacy.attacks.leakage.engine import Round
from lightning_privacy.attacks.leakage.joint import PooledJoint
from lightning_privacy.attacks.leakage.recovered import AuxiliaryAttack, LeakageAttack
from lightning_privacy.attacks.leakage.update import SharedUpdate
from lightning_privacy.attacks.leakage.update_defence import UpdateDefence
from lightning_privacy.callbacks.audits.leakage_attacks import applies
from lightning_privacy.callbacks.audits.leakage_attempts import Attempts, attempt_all
from lightning_privacy.callbacks.audits.leakage_client import check_loss, client_of
from lightning_privacy.callbacks.audits.leakage_conditions import DEFENDED, Condition, Sharing, conditions_of
from lightning_privacy.callbacks.audits.leakage_network import attacked_model
from lightning_privacy.callbacks.audits.leakage_pictures import LeakagePictures, read_leakage_pictures
from lightning_privacy.callbacks.audits.leakage_pools import Pools
from lightning_privacy.callbacks.audits.leakage_tables import Audited, tables_of
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.untouched import gather_parts, rank
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.core.ranks import world_size
from lightning_privacy.core.results import AttackResult

__all__ = ["LeakagePlan", "audit_leakage"]


@dataclass(frozen=True)
class LeakagePlan:
    """How a leakage audit goes; see `LeakageAudit` for what each field means.

    Args:
        attacks: Makes the attacks, by name.
        informed: Makes those that know the run's defences, by name, from the number of records behind an update.
        fallback: What runs under a condition to which none of them applies.
        victims: Updates attacked a batch size.
        batch_sizes: Records behind an update.
        sharing: What is shared.
        controls: Names of the controls.
        update_defences: What changes updates, in order.
        defended: Whether the run has any defence.
        seed: Of everything random.
        bootstrap: Resamples behind each interval.
        shown: Pictures on the sheets.
    """

    attacks: Callable[[], Mapping[str, LeakageAttack]]
    informed: Callable[[int], Mapping[str, LeakageAttack]] = lambda records: {}
    fallback: Mapping[str, LeakageAttack] = field(default_factory=dict)
    victims: int = 8
    batch_sizes: tuple[int, ...] = (1,)
    sharing: Sharing = Sharing()  # noqa: RUF009  # frozen
    controls: tuple[str, ...] = ()
    update_defences: tuple[UpdateDefence, ...] = ()
    defended: bool = False
    seed: int = 0
    bootstrap: int = 2000
    shown: int = 8


def audit_leakage(
    module: L.LightningModule, split: Any, plan: LeakagePlan, state: str, model: AuditedModel | None = None
) -> tuple[list[AttackResult], dict[str, list[Tensor]]]:
    """Attack updates of a module; ranks share the updates, and all get everything.

    Args:
        module: The module; a copy of it is the client, and it stays untouched itself.
        split: The set-up `MembershipSplit` that it is trained with.
        plan: How.
        state: First part of the results' names: ``initial`` or ``trained``.
        model: What the results say about the model.

    Returns:
        Results: one an attack, condition and batch size, the attackers' own choice of each beside them, and the references;
        and sheets of pictures by batch size: the victims, then a row a condition.

    Raises:
        InputError: the module is no classifier that minimises cross-entropy on pictures in [0, 1], or there are too few.
        MissingProtocolError: the module has no ``logits``.
    """
    with isolate_rng(), torch.inference_mode(False), torch.enable_grad():
        pictures = read_leakage_pictures(module, split, plan.victims * max(plan.batch_sizes), plan.seed)
        client = client_of(module, pictures.template)
        few = slice(0, min(plan.batch_sizes))
        classes = check_loss(client, pictures.victims[few], pictures.labels[few], plan.sharing.mode, plan.seed)
        open_model = attacked_model(client, pictures.shape, classes)
        conditions = conditions_of(client, open_model, plan.sharing, plan.update_defences, plan.defended, plan.controls)
        attacks = dict(plan.attacks())
        notes = [*client.notes, *_fitted(attacks, pictures, plan.seed)]
        done: dict[int, Any] = {}
        jobs = [(batch, number) for batch in plan.batch_sizes for number in range(plan.victims)]
        pools = Pools(plan.victims, max((a.updates for a in attacks.values() if isinstance(a, PooledJoint)), default=1))
        # a pool's updates go to one rank, which attacks them once; pools take turns
        turns: dict[tuple[int, int], int] = {}
        for index, (batch, number) in enumerate(jobs):
            turn = turns.setdefault((batch, pools.first(number)), len(turns))
            if turn % world_size() == rank():
                done[index] = _one_update(conditions, attacks, plan, pictures, batch, number, pools)
        made = gather_parts(done)
    audited = [
        Audited(batch, [each for (size, _), each in zip(jobs, made, strict=True) if size == batch])
        for batch in plan.batch_sizes
    ]
    return tables_of(
        audited,
        conditions,
        {name: attack.access for name, attack in {**plan.fallback, **attacks, **plan.informed(1)}.items()},
        pictures,
        state,
        model or AuditedModel(),
        split.split_hash,
        seed=plan.seed,
        bootstrap=plan.bootstrap,
        shown=plan.shown,
        notes=notes,
    )


def _fitted(attacks: Mapping[str, LeakageAttack], pictures: LeakagePictures, seed: int) -> list[str]:
    """Train the attacks that learn from the attacker's own pictures; return what must be said of them."""
    # An attack that extends another one has that to be trained.
    parts = [(n, each) for n, attack in attacks.items() for each in (attack, getattr(attack, "attack", None))]
    unfinished = [
        name
        for name, each in parts
        if isinstance(each, AuxiliaryAttack) and not each.fit(pictures.own, pictures.own_val, seed).converged
    ]
    return [f"What `{name}` learns from the attacker's own pictures did not converge." for name in unfinished]


def _shared(
    condition: Condition, plan: LeakagePlan, pictures: LeakagePictures, batch: int, number: int
) -> SharedUpdate:
    rows = slice(number * batch, (number + 1) * batch)
    seed = _seed(plan, batch, number)
    # Of what a layer draws in an attacker's simulation; the same on whichever rank.
    torch.manual_seed(derive_seed(seed, condition.name))
    return condition.share(pictures.victims[rows], pictures.labels[rows], seed)


def _seed(plan: LeakagePlan, batch: int, number: int) -> int:
    return derive_seed(plan.seed, "leakage", batch, number)


def _one_update(
    conditions: Sequence[Condition],
    attacks: Mapping[str, LeakageAttack],
    plan: LeakagePlan,
    pictures: LeakagePictures,
    batch: int,
    number: int,
    pools: Pools,
) -> dict[str, Attempts]:
    seed = _seed(plan, batch, number)
    found = {}
    for condition in conditions:
        update = _shared(condition, plan, pictures, batch, number)
        knowing = plan.informed(batch) if condition.name in (DEFENDED, "known_secrets") else {}
        mine = {
            name: attack for name, attack in [*attacks.items(), *knowing.items()] if applies(name, attack, condition)
        }

        def of(member: int, condition: Condition = condition) -> Round:
            return Round(condition.target, _shared(condition, plan, pictures, batch, member))

        mine = {
            name: pools.within(attack, (condition.name, batch), number, of, plan.seed) for name, attack in mine.items()
        }
        found[condition.name] = attempt_all(
            condition.target, update, mine or plan.fallback, condition.changed, seed, knowing
        )
    return found
