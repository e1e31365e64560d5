"""Scoring planted canaries, guessing their coins, bounding epsilon: on one finished model."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_privacy.attacks.membership.registry import build_attack
from lightning_privacy.attacks.structural.canary_guesses import SHARES, CoinGuesses, guess_coins, strongest_epsilon
from lightning_privacy.attacks.structural.proportions import share
from lightning_privacy.callbacks.audits.draw_plan import DrawPlan
from lightning_privacy.callbacks.audits.membership_audit import AuditedModel
from lightning_privacy.callbacks.audits.signals import (
    ErrorFunction,
    available_signals,
    compute_signals,
    missing_signals,
)
from lightning_privacy.callbacks.audits.untouched import on_rank_zero
from lightning_privacy.core.results import AttackResult, MembershipAttack, Metric
from lightning_privacy.metrics.functional.bootstrap import percentile_interval, record_replicates
from lightning_privacy.metrics.functional.delong import one_way_interval
from lightning_privacy.metrics.functional.roc import OperatingPoints, auroc

__all__ = ["FIT_ROLES", "audit_canaries", "canary_metrics", "chosen_attacks", "needs_fit"]

FIT_ROLES = ("aux_member", "attack_nonmember")
"""What attacks that learn or calibrate are fitted on."""


def needs_fit(attack: MembershipAttack) -> bool:
    """Return whether an attack keeps anything of the records that it is fitted on.

    Only one that says ``learns = False`` and ``calibrates = False`` scores without a fit; an attribute that is missing
    is taken to be true.

    Example:
        >>> needs_fit(build_attack("population"))
        True
    """
    return bool(getattr(attack, "learns", True) or getattr(attack, "calibrates", True))


def canary_metrics(
    scores: Float[Tensor, " canaries"],
    coins: Bool[Tensor, " canaries"],
    *,
    shares: Sequence[float] = SHARES,
    delta: float | int = 1e-5,
    level: float = 0.95,
    attacks: int = 1,
    bootstrap: int = 2000,
    seed: int = 0,
) -> tuple[dict[str, Metric], list[CoinGuesses]]:
    """Return what the scores of canaries show, whichever attack made them.

    Args:
        scores: Higher is more member-like; from any attack that did not see the coins.
        coins: True where the canary was trained on.
        shares: Shares of the canaries that are guessed, fixed beforehand; the bound is the best of them, corrected.
        delta: Of (epsilon, delta).
        level: Confidence of the bound, over all shares and attacks together.
        attacks: How many attacks' bounds are looked at.
        bootstrap: Resamples behind the interval of the AUROC.
        seed: Of ties and bootstrap.

    Returns:
        ``epsilon_lower`` (one-sided, so it has no upper end), ``accuracy`` of guessing all, ``auroc``; and the guesses
        at each share.

    Example:
        >>> coins = torch.arange(200) % 2 == 0
        >>> metrics, _ = canary_metrics(coins.double(), coins, bootstrap=0, shares=[1.0], delta=0.0)
        >>> round(metrics["epsilon_lower"].value, 2), metrics["accuracy"].value
        (4.19, 1.0)

    Source:
        arXiv 2305.08846.
    """
    every = [guess_coins(scores, coins, each, seed) for each in shares]
    epsilon = strongest_epsilon(every, delta, level, tests=len(every) * attacks)
    full = guess_coins(scores, coins, 1.0, seed)
    metrics = {"epsilon_lower": Metric(epsilon, low=epsilon), "accuracy": share(full.correct, full.guesses)}
    sides = scores[coins].double(), scores[~coins].double()
    if min(map(len, sides)) == 0:
        metrics["auroc"] = Metric(0.5, valid=False, reason="every coin fell on one side")
    elif bootstrap and (exact := one_way_interval(*sides)) is not None:
        metrics["auroc"] = exact
    else:
        interval: tuple[float | None, float | None] = (None, None)
        if bootstrap:
            generator = torch.Generator().manual_seed(seed)
            resampled = record_replicates([sides], OperatingPoints.auroc, bootstrap, generator)[0]
            interval = percentile_interval(resampled)
        metrics["auroc"] = Metric(auroc(*sides), *interval)
    return metrics, every


def audit_canaries(
    module: L.LightningModule,
    data: Any,
    attacks: Sequence[str | MembershipAttack] | None = None,
    *,
    shares: Sequence[float] = SHARES,
    delta: float | int = 1e-5,
    timesteps: Sequence[int] | None = None,
    draws: int = 2,
    seed: int = 0,
    bootstrap: int = 2000,
    batch_size: int | None = None,
    error_fn: ErrorFunction | str | None = None,
    model: AuditedModel | None = None,
) -> list[AttackResult]:
    """Score the canaries of a finished model by one or more attacks, guess their coins, bound epsilon.

    Attacks that learn or calibrate are fitted on ``aux_member`` against ``attack_nonmember``, never on a coin.

    Args:
        module: The audited module.
        data: The set-up `CanaryData` it was trained with.
        attacks: Names and objects; None for the loss relative to the model before fine-tuning where the module offers
            that, else the loss.
        shares: See `canary_metrics`.
        delta: Of (epsilon, delta).
        timesteps: Diffusion steps of the fixed draws; ten over the module's schedule if None.
        draws: Noises at each timestep.
        seed: Of draws, fits, ties and bootstrap.
        bootstrap: Resamples behind the interval of the AUROC.
        batch_size: Records at once; the datamodule's own if None.
        error_fn: Function (module, batch, draw) -> error, or its import path.
        model: What the results say about the model.

    Returns:
        One result of family ``canary`` an attack.

    Raises:
        MissingProtocolError: the module cannot give a signal that an attack needs.
    """
    chosen = chosen_attacks(attacks, module, error_fn)
    requires = {field for attack in chosen for field in attack.requires}
    roles = ("canary", *(FIT_ROLES if any(map(needs_fit, chosen)) else ()))
    plan = DrawPlan.of(timesteps, draws, seed)
    signals = compute_signals(module, data, roles, requires, plan=plan, batch_size=batch_size, error_fn=error_fn)
    coins, about = data.coins, model or AuditedModel()

    def measure() -> list[AttackResult]:
        results = []
        for attack in chosen:
            converged = not needs_fit(attack) or attack.fit(*(signals[role] for role in FIT_ROLES), seed=seed)
            scores = attack.score(signals["canary"]).double()
            metrics, guesses = canary_metrics(
                scores, coins, shares=shares, delta=delta, attacks=len(chosen), bootstrap=bootstrap, seed=seed
            )
            results.append(
                AttackResult(
                    family="canary",
                    attack=attack.name,
                    access=attack.access,
                    seed=seed,
                    split_hash=data.split_hash,
                    n={"canary_in": int(coins.sum()), "canary_out": int((~coins).sum())},
                    metrics=metrics,
                    converged=converged,
                    step=about.step,
                    epoch=about.epoch,
                    notes=(*_notes(metrics["epsilon_lower"], data.kind, float(delta), len(coins)), *about.notes),
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    extra={
                        "canary_hash": data.canary_hash,
                        "kind": data.kind,
                        "delta": float(delta),
                        "guesses": [[g.correct, g.guesses] for g in guesses],
                        "shares": list(shares),
                        **(about.extra or {}),
                    },
                )
            )
        return results

    return on_rank_zero(measure)


def chosen_attacks(
    attacks: Sequence[str | MembershipAttack] | None, module: Any, error_fn: ErrorFunction | str | None
) -> list[MembershipAttack]:
    """Return attacks from names and objects, or the loss attack that the module allows.

    Raises:
        MissingProtocolError: the module cannot give a signal that an attack needs.
    """
    available = available_signals(module, error_fn)
    if attacks is None:
        attacks = ["calibrated_loss" if "reference_loss" in available else "averaged_loss"]
    built = [build_attack(a) if isinstance(a, str) else a for a in attacks]
    for attack in built:
        if lacking := set(attack.requires) - available:
            raise missing_signals(module, lacking, attack.name)
    return built


def _notes(epsilon: Metric, kind: str, delta: float, canaries: int) -> tuple[str, ...]:
    if epsilon.value > 0:
        shown = (
            f"With 95 % confidence this training is not ({epsilon.value:.2f}, {delta:g})-differentially private for any "
            f"smaller epsilon; it may be far from private above it."
        )
    else:
        shown = "These guesses show no lower bound on epsilon; other scores or more canaries might."
    return shown, f"One run with {canaries} {kind} canaries: the bound is about records as unusual as they are."
