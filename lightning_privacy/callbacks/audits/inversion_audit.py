"""Running inversion attacks on one model: trained on the attacker's pictures, shown only what leaked of the victims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.target import InversionAttack, Tap
from lightning_privacy.callbacks.audits.inversion_pictures import AuditPictures, read_audit_pictures
from lightning_privacy.callbacks.audits.inversion_references import References, references_of
from lightning_privacy.callbacks.audits.inversion_results import (
    Reconstructed,
    Victims,
    ladder_notes,
    reconstruction_result,
    weakness_notes,
)
from lightning_privacy.callbacks.audits.inversion_tap import STRONGEST, attack_tap
from lightning_privacy.callbacks.audits.inversion_target import frozen, target_at
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.untouched import gather_parts, rank
from lightning_privacy.callbacks.quality.distances import set_distances
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.core.ranks import world_size
from lightning_privacy.core.results import AttackResult
from lightning_privacy.metrics.functional.reconstruction import paired_similarity

__all__ = ["InversionPlan", "audit_inversion"]


@dataclass(frozen=True)
class InversionPlan:
    """How an inversion audit goes; see `InversionAudit` for what each field means.

    Args:
        layers: Layer by tap; None for what the module's own methods give.
        attacks: Makes the attacks, anew for each tap.
        victims: Pictures attacked of each kind.
        queries: Times that each victim is watched.
        ceiling: Whether an autoencoder is trained as the scale's upper end.
        seed: Of everything random.
        bootstrap: Resamples behind each interval.
        shown: Victims on the sheets.
        distances: Distances between the strongest attack's reconstructions and the victims as sets, by name.
        decoder: Arguments of the trained decoder, of whose make the ceiling is.
    """

    layers: Mapping[Tap, str | None]
    attacks: Callable[[], Sequence[InversionAttack]]
    victims: int
    queries: int = 1
    ceiling: bool = True
    seed: int = 0
    bootstrap: int = 2000
    shown: int = 8
    distances: tuple[str, ...] = ()
    decoder: Mapping[str, Any] = field(default_factory=dict)


def audit_inversion(
    module: L.LightningModule, split: Any, plan: InversionPlan, model: AuditedModel | None = None
) -> tuple[list[AttackResult], dict[str, list[Tensor]]]:
    """Attack a module at every tap, on both kinds of victims; ranks share the taps, and all get everything.

    Args:
        module: The module.
        split: The set-up `MembershipSplit` that it was trained with.
        plan: How.
        model: What the results say about the model.

    Returns:
        The results: one an attack, tap and kind of victims, the strongest of each marked, and the references, which
        need no model; and sheets of pictures by kind: the victims, then a row of reconstructions a tap.

    Raises:
        InputError: pictures are not in [0, 1], or the attackers have too few.
    """
    pictures = read_audit_pictures(module, split, plan.victims, plan.seed)
    jobs: list[Callable[[], Any]] = [
        *(
            lambda tap=tap, layer=layer: _at_tap(module, tap, layer, pictures, plan)
            for tap, layer in plan.layers.items()
        ),
        lambda: references_of(pictures, plan.ceiling, plan.seed, plan.decoder),
    ]
    done: dict[int, Any] = {}
    with frozen(module), torch.enable_grad():
        for number, job in enumerate(jobs):
            if number % world_size() == rank():
                done[number] = job()
    *taps, references = gather_parts(done)
    return _results([each for tap in taps for each in tap], references, pictures, plan, split, model or AuditedModel())


def _at_tap(
    module: L.LightningModule, tap: Tap, layer: str | None, pictures: AuditPictures, plan: InversionPlan
) -> list[Reconstructed]:
    torch.manual_seed(
        derive_seed(plan.seed, "inversion", tap)
    )  # of what a defence draws; the run's own state is isolated
    target = target_at(module, tap, layer, pictures.template, pictures.shape)
    return attack_tap(target, plan.attacks(), pictures.own, pictures.victims, plan.queries, plan.seed)


def _results(
    made: Sequence[Reconstructed],
    references: References,
    pictures: AuditPictures,
    plan: InversionPlan,
    split: Any,
    model: AuditedModel,
) -> tuple[list[AttackResult], dict[str, list[Tensor]]]:
    victims: dict[Victims, Tensor] = {kind: each.cpu() for kind, each in pictures.victims.items()}
    floor = {kind: _psnr(references.floor[kind], victims[kind]) for kind in victims}
    ceiling = {kind: _psnr(found, victims[kind]) for kind, found in references.ceiling.items()}
    best = {(each.tap, each.victims): each for each in made if each.tap and each.attack == STRONGEST}
    results: list[AttackResult] = []
    for kind, originals in victims.items():
        tops: dict[Tap, Tensor] = {tap: _psnr(best[tap, kind].pictures, originals) for tap in plan.layers}
        ladder = ladder_notes(tops, plan.bootstrap, plan.seed)
        for each in [*made, *references.made]:
            if each.victims != kind:
                continue
            results.append(
                reconstruction_result(
                    each,
                    originals,
                    floor[kind],
                    ceiling.get(kind),
                    seed=plan.seed,
                    bootstrap=plan.bootstrap,
                    split_hash=split.split_hash,
                    step=model.step,
                    epoch=model.epoch,
                    further=set_distances(plan.distances, originals, each.pictures) if each.strongest else {},
                    notes=[*model.notes, *ladder, *_weak(each, originals, model)],
                )
            )
    sheets = {
        kind: [x[: plan.shown], *(best[tap, kind].pictures[: plan.shown] for tap in plan.layers)]
        for kind, x in victims.items()
    }
    return results, {str(kind): rows for kind, rows in sheets.items()}


def _psnr(pictures: Float[Tensor, "n c h w"], victims: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    return paired_similarity(pictures.cpu(), victims)["psnr"]


def _weak(each: Reconstructed, originals: Tensor, model: AuditedModel) -> list[str]:
    """Return what must be said where an undefended model is not even reconstructed at its split."""
    if each.attack != STRONGEST or each.tap != "split" or model.defences:
        return []
    return weakness_notes(each.pictures, originals)
