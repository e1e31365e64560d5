"""Reconstructions as results: numbers over victims with intervals, beside what needs no model and what is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.target import Access, FitRecord, Tap
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.reconstruction import (
    leak_share,
    paired_similarity,
    retrieved,
    victim_interval,
)

__all__ = ["FEWEST_VICTIMS", "Reconstructed", "Victims", "ladder_notes", "reconstruction_result", "weakness_notes"]

Victims = Literal["private", "heldout"]
"""Pictures that the model was trained on, and pictures that it never saw."""

FEWEST_VICTIMS = 8  # chosen here: below, a bootstrap over victims says nothing
_VISIBLE_SSIM, _VISIBLE_RETRIEVAL = 0.6, 0.8  # chosen here: what a person recognises at a glance
_ACCESS: Mapping[Access | Literal["none"], str] = {
    "none": "nothing of the model; a reference and no attack",
    "queries": "the model's output at the tap, and as many queries of its own pictures as it likes",
    "white_box": "the model's output at the tap, and its weights and defences",
}


@dataclass(frozen=True)
class Reconstructed:
    """What one attack made of one set of victims at one tap.

    Args:
        tap: Where it listened; None for a reference, which needs no model.
        victims: Whose pictures.
        attack: Its name.
        access: What it has.
        pictures: The reconstructions.
        fit: How its training went.
        fit_mse: Its mean squared error on the attacker's own validation pictures, which chooses the strongest.
        strongest: Whether that choice fell on it.
        extra: Further plain values.
    """

    tap: Tap | None
    victims: Victims
    attack: str
    access: Access | Literal["none"]
    pictures: Float[Tensor, "n channels height width"]
    fit: FitRecord
    fit_mse: float | None = None
    strongest: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


def reconstruction_result(
    made: Reconstructed,
    originals: Float[Tensor, "n channels height width"],
    floor: Float[Tensor, " n"],
    ceiling: Float[Tensor, " n"] | None,
    *,
    seed: int,
    bootstrap: int,
    split_hash: str,
    step: int,
    epoch: int,
    further: Mapping[str, Metric] | None = None,
    notes: Sequence[str] = (),
) -> AttackResult:
    """Return the result of one attack.

    Args:
        made: The reconstructions.
        originals: The victims, in the same order.
        floor: PSNR of each victim's best guess that needs no model.
        ceiling: PSNR of each victim under the autoencoder; None where it was not trained.
        seed: Of the attack and the bootstrap.
        bootstrap: Resamples behind each interval.
        split_hash: Of the split.
        step: Optimizer steps of the model.
        epoch: Its epoch.
        further: Further metrics.
        notes: Sentences to stand beside the numbers.

    Returns:
        The result; its name is ``<tap>/<victims>/<attack>``, a reference's ``<victims>/<name>`` in a family of its own.
    """
    found = paired_similarity(made.pictures.clamp(0, 1).cpu(), originals.cpu())
    hits = retrieved(made.pictures.cpu(), originals.cpu())
    n = len(originals)
    metrics = {name: _mean(values, bootstrap, seed) for name, values in found.items()}
    low, high = clopper_pearson(int(hits.sum()), n)
    metrics["retrieval"] = Metric(float(hits.double().mean()), float(low), float(high))
    metrics["gain_over_floor_db"] = _mean(found["psnr"] - floor, bootstrap, seed)
    if ceiling is not None:
        metrics["leak"] = _leak(found["psnr"], floor, ceiling, bootstrap, seed)
    metrics |= further or {}
    own = (
        () if made.fit.converged else (f"The attacker `{made.attack}` did not converge: a longer fit might find more.",)
    )
    return AttackResult(
        family="inversion" if made.tap else "inversion_reference",
        attack="/".join(part for part in (made.tap, made.victims, made.attack) if part),
        access=_ACCESS[made.access],
        seed=seed,
        split_hash=split_hash,
        n={made.victims: n},
        metrics=metrics,
        converged=made.fit.converged,
        strongest=made.strongest,
        step=step,
        epoch=epoch,
        notes=(*notes, *own, *([made.fit.note] if made.fit.note else [])),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra={
            "tap": made.tap,
            "victims": made.victims,
            "fit_mse": made.fit_mse,
            "fit_steps": made.fit.steps,
            "fit_seconds": round(made.fit.seconds, 1),
            "fit_history": [list(point) for point in made.fit.history[-200:]],
            "floor_psnr": float(floor.mean()),
            **({} if ceiling is None else {"ceiling_psnr": float(ceiling.mean())}),
            "per_victim": {"psnr": _plain(found["psnr"]), "mse": _plain(found["mse"]), "retrieved": hits.tolist()},
            **made.extra,
        },
    )


def weakness_notes(
    pictures: Float[Tensor, "n channels height width"], originals: Float[Tensor, "n channels height width"]
) -> list[str]:
    """Return what must be said of an undefended model whose split is not even reconstructed: the audit proves nothing.

    Args:
        pictures: The strongest attack's reconstructions.
        originals: The victims.
    """
    ssim = float(paired_similarity(pictures, originals)["ssim"].mean())
    share = float(retrieved(pictures, originals).double().mean())
    if ssim >= _VISIBLE_SSIM or share >= _VISIBLE_RETRIEVAL:
        return []
    return [
        f"The undefended model's split is not reconstructed (SSIM {ssim:.2f}, {100 * share:.0f} % retrieved; visible is "
        f"{_VISIBLE_SSIM} or {100 * _VISIBLE_RETRIEVAL:.0f} %): the attacks are too weak to judge a defence by."
    ]


def ladder_notes(psnr: Mapping[Tap, Tensor], bootstrap: int, seed: int) -> list[str]:
    """Return where a later tap gave more than an earlier one, which no defence can do: the attack there is too weak.

    What leaves later is a function of what leaves earlier, so that the best attacker finds no more in it.

    Args:
        psnr: PSNR of the same victims under the strongest attack, by tap.
        bootstrap: Resamples.
        seed: Of the resamples.
    """
    order: list[Tap] = [tap for tap in ("split", "features", "logits", "probabilities") if tap in psnr]
    notes = []
    for earlier, later in combinations(order, 2):
        difference = psnr[earlier] - psnr[later]
        _, high = victim_interval([difference], resamples=bootstrap, seed=seed)
        if high < 0:
            notes.append(
                f"The attack at the tap `{earlier}` is too weak: it finds {-float(difference.mean()):.1f} dB less than the one "
                f"at `{later}`, which sees a function of the same; the numbers at `{earlier}` are no bound on what leaks."
            )
    return notes


def _mean(values: Tensor, bootstrap: int, seed: int) -> Metric:
    if not values.isfinite().all():
        return Metric(float("nan"), valid=False, reason="a reconstruction equals its victim exactly, or is not finite")
    few = f"{len(values)} victims: at least {FEWEST_VICTIMS} needed" if len(values) < FEWEST_VICTIMS else ""
    if len(values) < 2:
        return Metric(float(values.mean()), valid=False, reason=few)
    return Metric(
        float(values.double().mean()),
        *victim_interval([values], resamples=bootstrap, seed=seed),
        valid=not few,
        reason=few,
    )


def _leak(found: Tensor, floor: Tensor, ceiling: Tensor, bootstrap: int, seed: int) -> Metric:
    if not float(ceiling.mean()) > float(floor.mean()):
        ends = f"{float(ceiling.mean()):.1f} dB, the floor {float(floor.mean()):.1f}"
        why = f"no scale: the decoder that sees the picture reaches {ends}; train it longer or on more pictures"
        return Metric(float("nan"), valid=False, reason=why)
    columns = [found, floor, ceiling]
    ends = victim_interval(columns, lambda f, b, c: (f.mean(1) - b.mean(1)) / (c.mean(1) - b.mean(1)), bootstrap, seed)
    return Metric(float(leak_share(*columns)), *ends)


def _plain(values: Tensor) -> list[float]:
    return [float(f"{x:.6g}") for x in values.double().tolist()]
