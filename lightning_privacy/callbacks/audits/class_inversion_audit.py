"""Running the class-level attack on one model, and judging what it drew by a classifier that was trained apart."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from lightning_privacy.attacks.inversion.class_metrics import ClassMeasures, measure_class_pictures
from lightning_privacy.attacks.inversion.evaluation_classifier import EvaluationClassifier, train_evaluation_classifier
from lightning_privacy.attacks.inversion.generators import PictureGenerator, load_stylegan, train_generator
from lightning_privacy.attacks.inversion.own_randomness import own_randomness
from lightning_privacy.attacks.inversion.plug_and_play import ClassPictures, PlugAndPlay
from lightning_privacy.attacks.inversion.target import FitRecord, InversionTarget
from lightning_privacy.callbacks.audits.inversion_pictures import AUX, FEWEST_OWN
from lightning_privacy.callbacks.audits.inversion_target import frozen, read_pictures, target_at
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.reconstruction import victim_interval

__all__ = ["ATTACK", "ClassPlan", "audit_classes"]

ATTACK = "plug_and_play"
_WEAK_JUDGE = 0.5  # chosen here: a judge that errs every second time says little of what it sees
_FEWEST_CLASSES = 5  # chosen here: below, an interval over classes says nothing
_VAL_SHARE = 0.2  # as in the audit of single pictures


@dataclass(frozen=True)
class ClassPlan:
    """How a class-level audit goes; see `ClassInversionAudit` for what each field means."""

    attack: PlugAndPlay
    classes: list[int] | None = None
    most: int = 10
    network: nn.Module | None = None
    weights: str | None = None
    latent_dim: int | None = None
    generator_steps: int = 3000
    evaluation_steps: int = 600
    shown: int = 8
    seed: int = 0
    bootstrap: int = 2000


@dataclass(frozen=True)
class _Judged:
    name: str
    measures: ClassMeasures
    fit: FitRecord
    confidence: Tensor | None = None


def audit_classes(
    module: L.LightningModule, split: Any, plan: ClassPlan, model: AuditedModel | None = None
) -> tuple[list[AttackResult], list[Tensor]]:
    """Attack classes of a module.

    Args:
        module: The module, with ``logits``.
        split: The set-up `MembershipSplit` that it was trained with.
        plan: How.
        model: What the results say about the model.

    Returns:
        Three results: the attack, pictures that the generator draws at random, and those of the attacker's own that the
        model is surest about; and rows of pictures, one column a class: a training picture, and the attack's best.

    Raises:
        InputError: pictures have no classes, a class has no training picture, or the attackers have too few pictures.
    """
    about = model or AuditedModel()
    own, _, template = _read(module, split, AUX)
    private, labels, _ = _read(module, split, "member")
    fresh, fresh_labels, _ = _read(module, split, "holdout")
    if len(own) < FEWEST_OWN:
        raise InputError(
            f"ClassInversionAudit: the role `{AUX}` has {len(own)} pictures to train a generator on; give it at least "
            f"{FEWEST_OWN} by MembershipSplit(fractions=...)."
        )
    classes = _chosen(plan, labels)
    with frozen(module), torch.enable_grad():
        target = target_at(module, "logits", None, template, (own.shape[1], own.shape[2], own.shape[3]))
        with torch.no_grad():
            count = target.observe(private[:1]).shape[1]
        generator, fit = _generator(plan, own)
        found = plan.attack.attack(target, generator, classes, plan.seed)
        references = {
            "random_pictures": _at_random(generator, classes, plan),
            "best_own_pictures": _most_trusted(own, target, classes, plan.attack.kept),
        }
    judge = train_evaluation_classifier(private, labels, count, plan.seed, plan.evaluation_steps)
    judged = [
        _Judged(ATTACK, _measure(found, judge, private, labels), fit, torch.cat([each.confidence for each in found])),
        *(_Judged(n, _measure(made, judge, private, labels), FitRecord()) for n, made in references.items()),
    ]
    with torch.no_grad():
        right = judge(fresh).argmax(1) == fresh_labels
    skill = float(right.double().mean())
    results = [_result(each, plan, skill, len(classes), split.split_hash, about) for each in judged]
    shown = found[: plan.shown]
    first = torch.stack([private[labels == each.label][0].cpu() for each in shown])
    return results, [first, torch.stack([each.pictures[0].cpu() for each in shown])]


def _read(module: L.LightningModule, split: Any, role: str) -> tuple[Tensor, Tensor, Any]:
    pictures, labels, template = read_pictures(module, split, role)
    if labels is None:
        raise InputError(
            f"ClassInversionAudit: the pictures of the role `{role}` have no classes; it needs batches with a `label`."
        )
    return pictures, labels, template


def _chosen(plan: ClassPlan, labels: Tensor) -> list[int]:
    there = sorted({int(each) for each in labels})
    if missing := sorted(set(plan.classes or []) - set(there)):
        raise InputError(f"ClassInversionAudit: the classes {missing} have no training picture; there are {there}.")
    return list(plan.classes) if plan.classes is not None else there[: plan.most]


def _generator(plan: ClassPlan, own: Tensor) -> tuple[PictureGenerator, FitRecord]:
    if plan.network is not None and plan.weights is not None:
        size = (own.shape[2], own.shape[3])
        made = load_stylegan(plan.weights, plan.network.to(own.device), plan.latent_dim or 512, size=size)
        return made, FitRecord(note=f"The generator is {type(plan.network).__name__} from a file.")
    cut = max(1, round(_VAL_SHARE * len(own)))
    return train_generator(own[cut:], own[:cut], plan.seed, plan.latent_dim or 32, plan.generator_steps)


def _at_random(generator: PictureGenerator, classes: list[int], plan: ClassPlan) -> list[ClassPictures]:
    """Draw as many pictures as the attack keeps, which no score has guided."""
    with own_randomness(plan.seed, "pictures at random", "cpu") as draws, torch.no_grad():
        nothing = torch.zeros(plan.attack.kept)
        return [
            ClassPictures(label, generator(generator.sample(plan.attack.kept, draws)).clamp(0, 1), nothing, nothing)
            for label in classes
        ]


def _most_trusted(own: Tensor, target: InversionTarget, classes: list[int], kept: int) -> list[ClassPictures]:
    """Take the attacker's own pictures that the model is surest about: an attack without a generator."""
    with torch.no_grad():
        trust = torch.cat([target.observe(part).float().softmax(1) for part in own.split(128)])
    best = {label: trust[:, label].topk(min(kept, len(own))) for label in classes}
    return [ClassPictures(label, own[top.indices], top.values, top.values) for label, top in best.items()]


def _measure(found: list[ClassPictures], judge: EvaluationClassifier, private: Tensor, labels: Tensor) -> ClassMeasures:
    return measure_class_pictures(found, judge, judge.features, private, labels)


def _result(
    judged: _Judged, plan: ClassPlan, skill: float, classes: int, split_hash: str, about: AuditedModel
) -> AttackResult:
    m, kept = judged.measures, len(judged.measures.labels) // classes
    recognised = m.recognised.double().view(classes, kept).mean(1)
    distance = m.distance.double().view(classes, kept).mean(1)
    values = {"recognised": recognised, "feature_distance": distance}
    notes = [*about.notes, f"The judge recognises {100 * skill:.0f} % of pictures that it was not trained on."]
    if skill < _WEAK_JUDGE:
        notes.append("The judge is too weak for these numbers to mean much; train it longer or on more pictures.")
    if judged.fit.note:
        notes.append(judged.fit.note)
    attack = judged.name == ATTACK
    return AttackResult(
        family="class_inversion" if attack else "class_inversion_reference",
        attack=f"logits/classes/{ATTACK}" if attack else f"classes/{judged.name}",
        access="the model's weights and defences" if attack else "nothing of the model; a reference and no attack",
        seed=plan.seed,
        split_hash=split_hash,
        n={"classes": classes, "pictures": classes * kept},
        metrics={name: _over_classes(each, plan) for name, each in values.items()}
        | {"natural_distance": Metric(float(m.natural.mean())) if len(m.natural) else _unknown()},
        converged=judged.fit.converged,
        strongest=attack,
        step=about.step,
        epoch=about.epoch,
        notes=tuple(notes),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra={
            "judge_accuracy": skill,
            "generator_steps": judged.fit.steps,
            **({} if judged.confidence is None else {"confidence": float(judged.confidence.mean())}),
        },
    )


def _over_classes(values: Tensor, plan: ClassPlan) -> Metric:
    if len(values) < 2:
        return Metric(float(values.mean()), valid=False, reason="one class has no interval")
    low, high = victim_interval([values.float()], resamples=plan.bootstrap, seed=plan.seed)
    few = len(values) < _FEWEST_CLASSES
    reason = f"{len(values)} classes: at least {_FEWEST_CLASSES} needed" if few else ""
    return Metric(float(values.mean()), low, high, valid=not few, reason=reason)


def _unknown() -> Metric:
    return Metric(float("nan"), valid=False, reason="no attacked class has two training pictures")
