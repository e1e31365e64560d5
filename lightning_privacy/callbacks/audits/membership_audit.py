"""Running membership attacks on one model: fitted on the attacker's records, judged on records nobody fitted on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_privacy.attacks.membership.registry import MEMBERSHIP_ATTACKS, build_attack
from lightning_privacy.attacks.membership.selection import FittedAttack, fit_attack, strongest
from lightning_privacy.callbacks.audits.boundary_signals import BOUNDARY_QUERIES
from lightning_privacy.callbacks.audits.draw_plan import DrawPlan
from lightning_privacy.callbacks.audits.evidence import result_notes
from lightning_privacy.callbacks.audits.shadow_signals import SHADOW_FIELDS, Evidence, with_shadows
from lightning_privacy.callbacks.audits.signals import (
    ErrorFunction,
    ReferenceCache,
    available_signals,
    compute_signals,
)
from lightning_privacy.callbacks.audits.slices import Parts, slice_scores, slices_of, subgroups_of
from lightning_privacy.callbacks.audits.split_access import check_roles
from lightning_privacy.callbacks.audits.untouched import on_rank_zero, untouched
from lightning_privacy.core.results import AttackResult, MembershipAttack, Signals
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import membership_metrics, roc_curve

__all__ = ["MOST_SCORES", "ROLES", "AuditedModel", "audit_membership", "choose_attacks"]

ROLES = ("aux_member", "attack_nonmember", "eval_member", "holdout")
"""Fitted on: the first two; evaluated on: the last two."""

MOST_SCORES = 5000
"""Records a side up to which a result keeps the score of each, for pooling and paired comparisons."""


@dataclass(frozen=True)
class AuditedModel:
    """What a result says about the model it belongs to.

    Args:
        step: Optimizer steps taken.
        epoch: Epochs completed.
        defences: Names of its defences; None where unknown.
        notes: Further sentences for every result.
        extra: Further plain values for every result, such as the checkpoint's name.
    """

    step: int = 0
    epoch: int = 0
    defences: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None


def choose_attacks(
    attacks: Sequence[str | MembershipAttack] | None,
    module: Any,
    error_fn: ErrorFunction | str | None = None,
    also: Collection[str] = (),
) -> list[MembershipAttack]:
    """Return attacks from names and objects.

    Args:
        attacks: Names, objects, or None for every registered attack whose signals the module can give.
        module: The audited module.
        error_fn: See `compute_signals`.
        also: Fields of `Signals` that are there beside the module's own, such as those of shadow models.

    Raises:
        InputError: an unknown name (the message lists those there are), or two attacks of one name.
    """
    if attacks is None:
        available = available_signals(module, error_fn) | set(also)
        if "logits" in available:  # a classifier's error is one number: its "map" says what the loss says
            available -= {"error_map", "reference_error_map"}
        attacks = [name for name, cls in MEMBERSHIP_ATTACKS.items() if set(cls.requires) <= available]  # pyright: ignore[reportAttributeAccessIssue]
        attacks = attacks or ["averaged_loss"]  # so that a module without any protocol is told what it lacks
    built = [build_attack(a) if isinstance(a, str) else a for a in attacks]
    names = [a.name for a in built]
    if not names or len(set(names)) < len(names):
        raise InputError(f"A membership audit needs attacks of different names, at least one, but was given {names}.")
    return built


def audit_membership(
    module: L.LightningModule,
    split: Any,
    attacks: Sequence[str | MembershipAttack] | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    draws: int = 2,
    seed: int = 0,
    bootstrap: int = 2000,
    batch_size: int | None = None,
    error_fn: ErrorFunction | str | None = None,
    cache: ReferenceCache | None = None,
    queries: int = 1,
    boundary_queries: int = BOUNDARY_QUERIES,
    delta: float | int = 1e-5,
    shadows: Evidence | None = None,
    subgroup: str | int | Any | None = None,
    model: AuditedModel | None = None,
) -> list[AttackResult]:
    """Attack a model: fit on ``aux_member`` against ``attack_nonmember``, judge on ``eval_member`` against ``holdout``.

    Threshold, sign and the strongest attack are chosen on the fit records; each attack is then scored once, one-sided.
    Under several ranks all of them must call; the attacks run on rank zero and every rank gets the results.

    Args:
        module: The audited module.
        split: The set-up `MembershipSplit` it was trained with.
        attacks: Names and objects (such as a defence's adaptive attacks); None for all that the module allows.
        timesteps: Diffusion steps of the fixed draws; ten over the module's schedule if None.
        draws: Noises at each timestep.
        seed: Of draws, fits, folds and bootstrap.
        bootstrap: Resamples behind each interval.
        batch_size: Records at once; the datamodule's own if None.
        error_fn: Function (module, batch, draw) -> error, or its import path, for a module without
            `per_sample_error`.
        cache: Keeps reference signals between audits of one run.
        queries: Views of each record that a classifier is asked about, the raw one first; see `query_views`.
        boundary_queries: Label queries a record, for an attack on the distance from the decision boundary.
        delta: At which the lower bound on epsilon is stated, corrected for the number of attacks.
        shadows: What shadow models say of the records, for the attacks that need them; under the same views.
        subgroup: Where batches hold the subgroup of each record (a key, a place, or a function's import path), by which
            every attack is also judged part by part, as it is by class and by loss.
        model: What the results say about the model.

    Returns:
        One result an attack, in the order given; `strongest` marks the one that fit data chose. Scores of the
        evaluation records are in ``extra`` (``member_scores``, ``nonmember_scores``, in the order of the roles).

    Raises:
        InputError: an unknown attack, or too few records.
        MissingProtocolError: the module cannot give a signal that an attack needs.
        SplitError: a role is empty or a loader is out of order.
    """
    chosen = choose_attacks(attacks, module, error_fn, SHADOW_FIELDS if shadows is not None else ())
    check_roles(split, ROLES, "A membership audit")
    requires = {field for attack in chosen for field in attack.requires}
    given = SHADOW_FIELDS if shadows is not None else frozenset()
    spent: dict[str, Tensor] = {}
    signals = compute_signals(
        module,
        split,
        ROLES,
        requires - given,
        plan=DrawPlan.of(timesteps, draws, seed),
        batch_size=batch_size,
        error_fn=error_fn,
        cache=cache,
        queries=queries,
        boundary_queries=boundary_queries,
        label_queries=spent,
    )
    if shadows is not None:
        signals = with_shadows(signals, shadows)
    about = model or AuditedModel()
    groups = None
    if subgroup is not None:
        with untouched(module):  # a loader that augments draws from the run's random state
            groups = subgroups_of(split, subgroup, ROLES[2]), subgroups_of(split, subgroup, ROLES[3])
    parts = slices_of(signals[ROLES[2]], signals[ROLES[3]], groups)
    results = on_rank_zero(lambda: _attack(chosen, signals, split.split_hash, seed, bootstrap, delta, about, parts))
    searched = {attack.name for attack in chosen if "boundary_distance" in attack.requires}
    return [_with_cost(result, boundary_queries, spent) if result.attack in searched else result for result in results]


def _with_cost(result: AttackResult, budget: int, spent: Mapping[str, Tensor]) -> AttackResult:
    """Return the result with what it cost, which decides whether a service would have answered."""
    every = torch.cat(list(spent.values()))
    cost = {"budget": budget, "mean": float(every.double().mean()), "most": int(every.max())}
    return replace(result, extra={**result.extra, "label_queries": cost})


def _attack(
    attacks: Sequence[MembershipAttack],
    signals: Mapping[str, Signals],
    split_hash: str,
    seed: int,
    bootstrap: int,
    delta: float | int,
    model: AuditedModel,
    parts: Parts,
) -> list[AttackResult]:
    fit_members, fit_nonmembers, members, nonmembers = (signals[role] for role in ROLES)
    fitted = {a.name: fit_attack(a, fit_members, fit_nonmembers, seed) for a in attacks}
    winner = strongest(fitted)
    counts = {"member": len(members), "holdout": len(nonmembers)}
    results = []
    for name, each in fitted.items():
        scores = each.score(members), each.score(nonmembers)
        results.append(
            AttackResult(
                family="membership",
                attack=name,
                access=each.attack.access,
                seed=seed,
                split_hash=split_hash,
                n=counts,
                metrics=membership_metrics(
                    *scores,
                    threshold=each.threshold,
                    bootstrap=bootstrap,
                    seed=seed,
                    delta=delta,
                    tests=len(attacks),
                ),
                converged=each.converged,
                strongest=name == winner,
                fit_auroc=each.fit_auroc,
                step=model.step,
                epoch=model.epoch,
                roc=roc_curve(*scores),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                extra={
                    **_extra(each, scores, fit_members, fit_nonmembers),
                    "delta": float(delta),
                    "slices": slice_scores(parts, *scores),
                    **(model.extra or {}),
                },
            )
        )
    top = next(r for r in results if r.strongest)
    shared = (*result_notes(counts, len(attacks), top, model.defences), *model.notes)
    return [replace(r, notes=(*shared, *_own_notes(r))) for r in results]


def _own_notes(result: AttackResult) -> tuple[str, ...]:
    if result.converged:
        return ()
    return (f"The attacker `{result.attack}` did not converge: a longer fit might find more.",)


def _extra(
    fitted: FittedAttack, scores: tuple[Tensor, Tensor], fit_members: Signals, fit_nonmembers: Signals
) -> dict[str, Any]:
    observed = next((x for x in (fit_members.loss, fit_members.error_map) if x is not None), None)
    extra: dict[str, Any] = {
        "fit": {"member": len(fit_members), "nonmember": len(fit_nonmembers)},
        "sign": fitted.sign,
        "threshold": fitted.threshold,
        "draws": 1 if observed is None else int(observed.shape[1]),
    }
    if fit_members.timesteps is not None:
        extra["timesteps"] = fit_members.timesteps.unique().tolist()
    if max(len(s) for s in scores) <= MOST_SCORES:
        extra |= {f"{side}_scores": _plain(s) for side, s in zip(("member", "nonmember"), scores, strict=True)}
    return extra


def _plain(scores: Tensor) -> list[float]:
    # Eight digits keep the order of all but contrived scores and halve the file.
    return [float(f"{x:.8g}") for x in scores.to(torch.float64).tolist()]
