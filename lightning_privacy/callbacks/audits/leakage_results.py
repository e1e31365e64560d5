"""Reconstructions from shared updates as results: numbers over updates with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.leakage.scoring import affine_aligned, best_order
from lightning_privacy.callbacks.audits.inversion_results import FEWEST_VICTIMS
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.reconstruction import paired_similarity, victim_interval

__all__ = ["SUCCESS_SSIM", "Made", "Scores", "leakage_result", "ordered", "score_pictures", "shared_labels"]

SUCCESS_SSIM = 0.6  # arXiv 2305.04095, released code, names it; what a person recognises at a glance
_MOST_PSNR = 100.0  # chosen here: dB that equal pictures get, so that means stay finite
Family = Literal["leakage", "leakage_control", "leakage_reference"]
Pictures = Float[Tensor, "n channels height width"]


@dataclass(frozen=True)
class Scores:
    """Numbers of each picture, in the order of the victims.

    Args:
        values: By metric.
    """

    values: Mapping[str, Float[Tensor, " n"]]


@dataclass(frozen=True)
class Made:
    """What one attack made of all updates of one batch size under one condition.

    Args:
        family: ``leakage``, or that of controls or references.
        name: Name of the result.
        access: What the attacker has.
        pictures: In the order of the victims; None for an attack on labels alone.
        labels_right: Share of the classes found of each update; None where the attack says nothing of them.
        matching_loss: Of each update; empty for references.
        converged: Of each update.
        strongest: Whether the attacker's own criterion made this choice.
        notes: Of the attack.
        extra: Further plain values.
    """

    family: Family
    name: str
    access: str
    pictures: Pictures | None
    labels_right: Float[Tensor, " updates"] | None = None
    matching_loss: tuple[float, ...] = ()
    converged: tuple[bool, ...] = ()
    strongest: bool = False
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def ordered(found: Pictures, truth: Pictures) -> Pictures:
    """Return reconstructions of one update in the order of its records, which no update gives away.

    Args:
        found: In any order.
        truth: The records.
    """
    return found[best_order(found, truth)] if len(truth) > 1 else found


def shared_labels(found: Int[Tensor, " n"], truth: Int[Tensor, " n"]) -> float:
    """Return the share of an update's classes that were found, whatever their order.

    Args:
        found: Classes; -1 where unknown.
        truth: The records' classes.

    Example:
        >>> shared_labels(torch.tensor([1, 1, 2]), torch.tensor([2, 1, 3]))
        0.6666666666666666
    """
    return sum(min(int((found == c).sum()), int((truth == c).sum())) for c in truth.unique()) / len(truth)


def score_pictures(found: Pictures, truth: Pictures, others: Float[Tensor, "o channels height width"]) -> Scores:
    """Return how good each reconstruction is, raw and with brightness and contrast of each channel fitted to the truth.

    Args:
        found: In the order of the truth.
        truth: The records.
        others: Further pictures among which each must find its own.

    Returns:
        ``psnr``, ``ssim``, ``mse``, each also as ``aligned_*``; ``success``; ``retrieval`` and ``retrieval_rank`` (1 is
        best) among all records and the others, with brightness and contrast taken out of both sides.
    """
    raw, fitted = (paired_similarity(each, truth) for each in (found.clamp(0, 1), affine_aligned(found, truth)))
    values = {name: each.double() for name, each in raw.items()}
    values |= {f"aligned_{name}": each.double() for name, each in fitted.items()}
    for name in ("psnr", "aligned_psnr"):
        values[name] = values[name].clamp(max=_MOST_PSNR)
    values["success"] = (values["aligned_ssim"] >= SUCCESS_SSIM).double()
    rank = _rank(found, torch.cat([truth, others]))
    return Scores({**values, "retrieval": (rank == 1).double(), "retrieval_rank": rank.double()})


def _rank(found: Pictures, candidates: Float[Tensor, "c channels height width"]) -> Int[Tensor, " n"]:
    """Return the place of each picture's own among the candidates, ties counting against it."""
    a, b = _standardised(found), _standardised(candidates)
    distance = torch.cdist(a, b)
    own = distance.diagonal()[:, None]
    return (distance <= own + 1e-9).sum(1)


def _standardised(pictures: Pictures) -> Float[Tensor, "n numbers"]:
    centred = pictures.double() - pictures.double().mean((2, 3), keepdim=True)
    spread = centred.square().mean((2, 3), keepdim=True).sqrt()
    return (centred / spread.clamp_min(1e-6)).flatten(1)


def leakage_result(
    made: Made,
    scores: Scores | None,
    batch: int,
    *,
    floor: Float[Tensor, " n"] | None,
    seed: int,
    bootstrap: int,
    split_hash: str,
    step: int,
    epoch: int,
    candidates: int,
    notes: Sequence[str] = (),
) -> AttackResult:
    """Return the result of one attack; intervals are over updates, whose records are not independent.

    Args:
        made: What it made.
        scores: Of its pictures.
        batch: Records an update.
        floor: PSNR of each victim's best guess without any update.
        seed: Of attack and bootstrap.
        bootstrap: Resamples behind each interval.
        split_hash: Of the split.
        step: Optimizer steps of the model.
        epoch: Its epoch.
        candidates: Pictures among which each reconstruction had to find its own.
        notes: Sentences to stand beside the numbers.
    """
    metrics: dict[str, Metric] = {}
    if scores is not None:
        for name, values in scores.values.items():
            per_update = values.reshape(-1, batch).mean(1)
            share = batch == 1 and name in ("success", "retrieval")
            metrics[name] = _share(per_update) if share else _mean(per_update, bootstrap, seed)
        if floor is not None:
            gain = (scores.values["psnr"] - floor.double()).reshape(-1, batch).mean(1)
            metrics["gain_over_floor_db"] = _mean(gain, bootstrap, seed)
    if made.labels_right is not None:
        metrics["label_accuracy"] = _mean(made.labels_right.double(), bootstrap, seed)
    if made.matching_loss:
        metrics["matching_loss"] = _median(torch.tensor(made.matching_loss, dtype=torch.float64), bootstrap, seed)
    solved = _solved(scores, made, batch)
    if made.converged:
        metrics["converged_share"] = _share(torch.tensor(made.converged, dtype=torch.float64))
    short = () if all(solved) else (_unfinished(made, solved),)
    records = 0 if scores is None else len(next(iter(scores.values.values())))
    updates = records // batch if records else len(made.labels_right) if made.labels_right is not None else 0
    per = {} if scores is None else {k: _plain(scores.values[k]) for k in ("psnr", "aligned_ssim", "retrieval_rank")}
    return AttackResult(
        family=made.family,
        attack=made.name,
        access=made.access,
        seed=seed,
        split_hash=split_hash,
        n={"updates": updates, "records": updates * batch},
        metrics=metrics,
        converged=all(solved),
        strongest=made.strongest,
        step=step,
        epoch=epoch,
        notes=(*notes, *made.notes, *short),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        extra={
            "batch": batch,
            "success_threshold": f"aligned SSIM >= {SUCCESS_SSIM}",
            "candidates": candidates,
            "per_victim": {**per, "matching_loss": [float(f"{x:.4g}") for x in made.matching_loss]},
            **made.extra,
        },
    )


def _solved(scores: Scores | None, made: Made, batch: int) -> list[bool]:
    """Return for each update whether its search ended, or came far enough all the same."""
    if scores is None or not made.converged:
        return [True]
    seen = scores.values["success"].reshape(-1, batch).min(1).values.bool().tolist()
    return [ended or good for ended, good in zip(made.converged, seen, strict=True)]


def _unfinished(made: Made, solved: Sequence[bool]) -> str:
    return (
        f"{sum(not each for each in solved)} of {len(solved)} searches of `{made.name}` neither ended nor reconstructed "
        "anything: a longer search might, so that this is no evidence of privacy."
    )


def _mean(values: Tensor, bootstrap: int, seed: int) -> Metric:
    return _estimate(values, float(values.mean()), lambda x: x.mean(1), bootstrap, seed)


def _median(values: Tensor, bootstrap: int, seed: int) -> Metric:
    return _estimate(values, float(values.quantile(0.5)), lambda x: x.quantile(0.5, dim=1), bootstrap, seed)


def _estimate(values: Tensor, value: float, statistic: Any, bootstrap: int, seed: int) -> Metric:
    if not bool(values.isfinite().all()):
        return Metric(float("nan"), valid=False, reason="the number is not finite for some update")
    few = _few(len(values))
    if len(values) < 2:
        return Metric(value, valid=False, reason=few)
    return Metric(value, *victim_interval([values], statistic, bootstrap, seed), valid=not few, reason=few)


def _share(hits: Tensor) -> Metric:
    low, high = clopper_pearson(int(hits.sum()), len(hits))
    few = _few(len(hits))
    return Metric(float(hits.mean()), float(low), float(high), valid=not few, reason=few)


def _few(n: int) -> str:
    return f"{n} updates: at least {FEWEST_VICTIMS} needed" if n < FEWEST_VICTIMS else ""


def _plain(values: Tensor) -> list[float]:
    return [float(f"{x:.5g}") for x in values.tolist()]
