"""Attacking one locked model: every attack makes a classifier of raw pictures, and each is scored once."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.lock.finetuning import Scratch
from lightning_privacy.attacks.lock.target import Cost, LockAttack, LockedModel, Unlocked, accuracy_of
from lightning_privacy.callbacks.audits.inversion_target import batch_like
from lightning_privacy.callbacks.audits.lock_guesses import Guess
from lightning_privacy.callbacks.audits.lock_pictures import SCORED, LockPictures
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.untouched import precision_of
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.metrics.functional.binomial import clopper_pearson

__all__ = ["FAMILY", "REFERENCE", "STRONGEST", "LockPlan", "attack_lock", "locked_model"]

FAMILY, REFERENCE, STRONGEST = "lock", "lock_reference", "strongest"
_FEW = 30  # scored pictures below which a share says too little; chosen here
_RIVAL = 0.5  # of UP: what an attacker may reach at a working lock


@dataclass(frozen=True)
class LockPlan:
    """How an audit of a lock goes.

    Args:
        attacks: Those that use all of the attacker's pictures, and those that guess keys.
        by_count: Those that are run for several numbers of labelled pictures.
        shares: These numbers, as shares of what the model was trained on; an attacker with fewer pictures uses all of them.
        scratch: The same training without the stolen weights.
        members: Pictures that it was trained on.
        seed: Of the attacks.
    """

    attacks: Sequence[LockAttack | Guess]
    by_count: Sequence[LockAttack]
    shares: Sequence[float]
    scratch: Scratch
    members: int
    seed: int

    def label_counts(self, available: int) -> list[int]:
        """Return the numbers of labelled pictures, each once, in order.

        Args:
            available: Pictures that the attacker has.
        """
        return sorted({max(1, min(math.ceil(share * self.members), available)) for share in self.shares})


class _Network(nn.Module):
    """A copy of a LightningModule as a function of pictures alone."""

    def __init__(
        self, module: L.LightningModule, template: Any, precision: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        super().__init__()
        self.module, self.template, self.precision = module, template, precision

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n classes"]:
        with self.precision():
            found = self.module.logits(batch_like(self.template, images))  # pyright: ignore[reportCallIssue]
        return found.float()


def locked_model(module: L.LightningModule, template: Any, classes: int) -> LockedModel:
    """Return a module as an attacker has it: frozen by the caller, scores without a reject class.

    Args:
        module: The module.
        template: A batch.
        classes: Number of classes.
    """

    def make() -> nn.Module:
        twin = copy.deepcopy(module)
        twin.zero_grad(set_to_none=True)
        for weight in twin.parameters():
            weight.requires_grad_(weight.is_floating_point())
        return _Network(twin, template, lambda: precision_of(module))

    return LockedModel(_Network(module, template, lambda: precision_of(module)), make, classes)


def attack_lock(
    model: LockedModel, pictures: LockPictures, plan: LockPlan, about: AuditedModel, split_hash: str
) -> tuple[list[AttackResult], dict[str, Tensor]]:
    """Run every attack and score it.

    Args:
        model: The model.
        pictures: The pictures.
        plan: What runs.
        about: What the results say about the model.
        split_hash: Of the split.

    Returns:
        Results, and the scored pictures as each attack shows them to the model, for a sheet.
    """
    up = _rate(model.scores, pictures.keyed, pictures.labels)
    found: dict[str, Unlocked] = {attack.name: attack.unlock(model, pictures.own, plan.seed) for attack in plan.attacks}
    references: dict[str, Unlocked] = {}
    for k in plan.label_counts(len(pictures.own.images)):
        some, name = pictures.own.first(k), f"{k}_labels"
        found |= {f"{attack.name}/{name}": attack.unlock(model, some, plan.seed) for attack in plan.by_count}
        references[f"scratch/{name}"] = plan.scratch.unlock(model, some, plan.seed)
    best = max(found, key=lambda name: found[name].own_accuracy)
    access = {attack.name: attack.access for attack in [*plan.attacks, *plan.by_count, Scratch()]}
    notes = list(about.notes)

    def result(
        name: str, rate: Metric, how: str, family: str, made: Unlocked | None, extra: Mapping[str, Any]
    ) -> AttackResult:
        return AttackResult(
            family=family,
            attack=name,
            access=how,
            seed=plan.seed,
            split_hash=split_hash,
            n={SCORED: len(pictures.raw)},
            metrics={"accuracy": rate, **({} if family == REFERENCE else {"share_of_up": _share(rate, up)})},
            converged=made is None or made.converged,
            strongest=name == STRONGEST,
            step=about.step,
            epoch=about.epoch,
            notes=tuple(notes),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            extra={**({} if made is None else _told(made)), **extra},
        )

    def on_choice(classify: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, Any]:
        right = accuracy_of(classify, images, pictures.choice.labels)
        return {"choice_accuracy": right, "choice_role": pictures.choice.role}

    chance = Metric(1 / model.classes)
    out = [
        result("with_key", up, "the key", REFERENCE, None, on_choice(model.scores, pictures.choice.keyed)),
        result("chance", chance, "nothing", REFERENCE, None, {}),
    ]
    every = {**found, **references}
    rates = {name: _rate(made.classify, pictures.raw, pictures.labels) for name, made in every.items()}
    beside = {name: on_choice(made.classify, pictures.choice.raw) for name, made in every.items()}
    if up.low is not None and up.low <= chance.value:
        notes.append("With the key the model is no better than guessing: these results say nothing about a lock.")
    elif rates[best].value > _RIVAL * up.value:
        notes.append(
            f"An attacker without the key reaches {100 * rates[best].value:.0f} % where the key gives {100 * up.value:.0f} % "
            f"(`{best}`): this lock does not hold."
        )
    for name, made in found.items():
        out.append(result(name, rates[name], access[name.split("/")[0]], FAMILY, made, beside[name]))
    for name, made in references.items():
        out.append(result(name, rates[name], access["scratch"], REFERENCE, made, beside[name]))
    strongest = {"chosen_attack": best, **beside[best]}
    out.append(result(STRONGEST, rates[best], access[best.split("/")[0]], FAMILY, found[best], strongest))
    shown = {name: made.edit(pictures.raw[:_SHOWN]) for name, made in found.items() if made.edit is not None}
    return out, shown


_SHOWN = 8


def _told(made: Unlocked) -> dict[str, Any]:
    cost: Cost = made.cost
    return {"own_accuracy": made.own_accuracy, "chosen": made.chosen, "cost": asdict(cost)}


@torch.no_grad()
def _rate(classify: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Metric:
    right = torch.cat([classify(part).argmax(1) for part in images.split(256)]) == labels
    low, high = clopper_pearson(int(right.sum()), len(right))
    few = f"{len(right)} pictures: at least {_FEW} needed" if len(right) < _FEW else ""
    return Metric(float(right.double().mean()), float(low), float(high), valid=not few, reason=few)


def _share(rate: Metric, up: Metric) -> Metric:
    if up.value <= 0:
        return Metric(float("nan"), valid=False, reason="nothing is right even with the key")
    return Metric(rate.value / up.value, valid=rate.valid, reason=rate.reason)
