"""Running the structural checks on one model: what its outputs say without an attack being fitted."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_privacy.attacks.membership.prescreen import prescreen
from lightning_privacy.attacks.structural.loss_gap import effective_parameters, loss_gap
from lightning_privacy.attacks.structural.published_outputs import (
    SMALLEST_GROUP,
    class_disclosure,
    output_groups,
    small_classes,
)
from lightning_privacy.callbacks.audits.draw_plan import DrawPlan
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.signals import (
    ErrorFunction,
    available_signals,
    compute_signals,
    missing_signals,
)
from lightning_privacy.callbacks.audits.split_access import check_roles, role_indices
from lightning_privacy.callbacks.audits.untouched import on_rank_zero
from lightning_privacy.core.results import AttackResult, Metric, Signals
from lightning_privacy.errors import InputError, MissingProtocolError

__all__ = ["FNR", "READING_PRESCREEN", "ROLES", "WHY_NOT_PARAMETERS", "audit_structure", "check_names"]

ROLES = ("eval_member", "holdout")

WHY_NOT_PARAMETERS = (
    "The number of weights against the number of records is shown and not judged: a rule that flags a model with more "
    "parameters than records, or with outputs that no other record shares, flags every deep network, because each has "
    "more weights than records and no two of its outputs are equal in floating point. Counted here instead are the "
    "parameters that the loss gap amounts to, and outputs rounded as a service would publish them."
)

FNR = 0.01  # chosen here, as in `prescreen`
READING_PRESCREEN = (
    "tnr is the share of the hold-out whose loss is higher than nearly every member's, moved what of it training took from "
    "the members. A tnr of about the allowed false-negative rate means that the loss shows nothing; one near 1 that the model "
    "has learnt its members' outliers, and that attacks with shadow models will find members among them. It says whether "
    "those are worth their cost, and is no verdict: a low tnr is no certificate (arXiv 2510.19773)."
)


def check_names(module: Any, error_fn: ErrorFunction | str | None = None) -> tuple[str, ...]:
    """Return the checks that a module allows.

    Raises:
        MissingProtocolError: it allows none.
    """
    available = available_signals(module, error_fn)
    if "logits" in available:
        return (
            "loss_gap",
            "effective_parameters",
            "prescreen",
            "published_outputs",
            "class_disclosure",
            "small_classes",
        )
    if "loss" not in available:
        raise _nothing_to_check(module)
    return ("loss_gap",)


def _nothing_to_check(module: Any) -> MissingProtocolError:
    return missing_signals(module, {"loss"}, "structural")


def audit_structure(
    module: L.LightningModule,
    split: Any,
    *,
    timesteps: Sequence[int] | None = None,
    draws: int = 2,
    seed: int = 0,
    bootstrap: int = 2000,
    decimals: int = 2,
    smallest: int = SMALLEST_GROUP,
    fnr: float = FNR,
    batch_size: int | None = None,
    error_fn: ErrorFunction | str | None = None,
    model: AuditedModel | None = None,
) -> list[AttackResult]:
    """Compare what the model says of ``eval_member`` and of ``holdout``; every rank must call and gets the results.

    A classifier (``logits``) gets every check, on its plain cross-entropy; another module the gap of its training error
    alone, averaged over fixed draws.

    Args:
        module: The audited module.
        split: The set-up `MembershipSplit` it was trained with.
        timesteps: Diffusion steps of the fixed draws; ten over the module's schedule if None.
        draws: Noises at each timestep.
        seed: Of draws and bootstrap.
        bootstrap: Resamples behind the intervals of the gap and of the pre-screen.
        decimals: Digits of a published probability.
        smallest: A group or class below this size counts as small.
        fnr: Share of the members that may lie in the tail of high losses at the pre-screen, in (0, 1).
        batch_size: Records at once; the datamodule's own if None.
        error_fn: Function (module, batch, draw) -> error, or its import path.
        model: What the results say about the model.

    Returns:
        One result a check.

    Raises:
        MissingProtocolError: the module gives neither class scores nor errors.
        SplitError: a role is empty.
    """
    names = check_names(module, error_fn)
    check_roles(split, ROLES, "A structural audit")
    classifier = "published_outputs" in names
    requires = {"logits", "labels"} if classifier else {"loss"}
    plan = DrawPlan.of(timesteps, draws, seed)
    signals = compute_signals(module, split, ROLES, requires, plan=plan, batch_size=batch_size, error_fn=error_fn)
    every = compute_signals(module, split, ["member"], {"labels"}, batch_size=batch_size) if classifier else {}
    parameters = sum(p.numel() for p in module.parameters())

    def measure() -> list[AttackResult]:
        member, heldout = (_losses(signals[role]) for role in ROLES)
        found: dict[str, tuple[Mapping[str, Metric], Mapping[str, Any], tuple[str, ...]]] = {}
        gap = loss_gap(member, heldout, bootstrap, seed)
        found["loss_gap"] = gap, {}, ()
        if classifier:
            trained_on = len(role_indices(split, "member"))
            counted = {"parameters": parameters, "trained_on": trained_on}
            found["effective_parameters"] = (
                effective_parameters(gap["mean_gap"], trained_on),
                counted,
                (WHY_NOT_PARAMETERS,),
            )
            found["prescreen"] = *_prescreen(signals, fnr, bootstrap, seed), (READING_PRESCREEN,)
            scores = _logits(signals[ROLES[0]]), _logits(signals[ROLES[1]])
            found["published_outputs"] = output_groups(*scores, decimals, smallest), {"decimals": decimals}, ()
            metrics, never, zero = class_disclosure(torch.cat(scores), decimals)
            found["class_disclosure"] = metrics, {"never_predicted": never, "always_zero": zero}, ()
            labels = every["member"].labels
            if labels is not None:
                metrics, few = small_classes(labels, smallest)
                found["small_classes"] = metrics, {"classes": {str(label): n for label, n in few.items()}}, ()
        about = model or AuditedModel()
        return [
            AttackResult(
                family="structural",
                attack=name,
                access="labels of the training set" if name == "small_classes" else "class scores" if classifier else "loss",
                seed=seed,
                split_hash=split.split_hash,
                n={"member": len(member), "holdout": len(heldout)},
                metrics=found[name][0],
                step=about.step,
                epoch=about.epoch,
                notes=(*found[name][2], *about.notes),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                extra={**found[name][1], **(about.extra or {})},
            )
            for name in names
        ]  # fmt: skip

    return on_rank_zero(measure)


def _prescreen(
    signals: Mapping[str, Signals], fnr: float, bootstrap: int, seed: int
) -> tuple[dict[str, Metric], dict[str, Any]]:
    try:
        seen = prescreen(signals[ROLES[0]], signals[ROLES[1]], fnr, max(bootstrap, 1), seed)
    except InputError as error:
        # Scores that are not finite: said in the result, as the other checks still say something.
        return {name: Metric(0.0, valid=False, reason=str(error)) for name in ("tnr", "moved")}, {"fnr": fnr}
    moved = Metric(seen.moved, valid=seen.tnr.valid, reason=seen.tnr.reason)
    return {"tnr": seen.tnr, "moved": moved}, {"fnr": fnr, "cut": seen.cut, "in_tail": list(seen.in_tail)}


def _logits(signals: Signals) -> Tensor:
    return _given(signals.logits)[:, 0]


def _losses(signals: Signals) -> Tensor:
    if signals.logits is not None:
        return F.cross_entropy(_logits(signals).double(), _given(signals.labels), reduction="none")
    return _given(signals.loss).double().mean(1)


def _given(field: Tensor | None) -> Tensor:
    if field is None:
        raise MissingProtocolError("A structural audit got signals without a field that it asked for.")
    return field
