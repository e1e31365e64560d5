"""From the lines of a run's files to the numbers of a dossier."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson
from lightning_privacy.metrics.functional.low_fpr import tpr_interval_on_roc
from lightning_privacy.report.dossier.models import AttackEntry, Histogram, Measurement, Number, Slice
from lightning_privacy.report.dossier.scrub import scrub_settings, scrub_text

__all__ = ["attack_entry", "histogram", "measurement_entry"]

_SCORES = {"member_scores", "nonmember_scores", "member_ids", "nonmember_ids", "failed", "slices"}
_SHARES = ("auroc", "balanced_accuracy", "ppv_at_prior_", "tpr_at_fpr_")
_BINS = 30  # chosen here: wide enough for some tens of records a side


def attack_entry(result: AttackResult, strongest: bool, folder: Path) -> AttackEntry:
    """Return what a dossier keeps of an attack's result.

    Args:
        result: The result; ``extra["failed"]`` says why it has none, ``extra["member_scores"]`` and
            ``extra["nonmember_scores"]`` are counted and not kept.
        strongest: Whether it is the strongest of its family by fit data; its scores are kept as a histogram.
        folder: The run's folder, whose path is removed from texts.

    Raises:
        InputError: a rate or an area lies outside [0, 1].
    """
    for name, metric in result.metrics.items():
        if name.startswith(_SHARES) and not (math.isnan(metric.value) or 0 <= metric.value <= 1):
            raise InputError(
                f"`{name}` of the attack `{result.attack}` at step {result.step} is {metric.value:g}, which is no share. "
                "Correct or remove that line of results.jsonl."
            )
    failed = str(result.extra.get("failed") or ("" if result.metrics else "it gave no number"))
    member, nonmember = (result.extra.get(f"{side}_scores") or () for side in ("member", "nonmember"))
    return AttackEntry(
        family=result.family,
        name=result.attack,
        access=scrub_text(result.access, folder),
        seed=result.seed,
        step=result.step,
        n=dict(result.n),
        failed=scrub_text(failed, folder),
        converged=result.converged,
        strongest=result.strongest,
        fit_auroc=_finite(result.fit_auroc),
        metrics={name: _number(name, metric, folder, result) for name, metric in result.metrics.items()},
        roc=[(x, y) for x, y in result.roc if math.isfinite(x) and math.isfinite(y)],
        histogram=histogram(member, nonmember) if strongest and member and nonmember else None,
        slices=_slices(result, folder),
        settings=scrub_settings({k: v for k, v in result.extra.items() if k not in _SCORES}, folder),
        notes=[scrub_text(note, folder) for note in result.notes],
    )


def _slices(result: AttackResult, folder: Path) -> list[Slice]:
    try:
        return [
            Slice(
                by=each["by"],
                value=scrub_text(str(each["value"]), folder),
                n=each["n"],
                auroc=_number("auroc", Metric(**each["auroc"]), folder).model_copy(
                    update={"level": each["level"], "method": "DeLong, logit scale"}
                ),
            )
            for each in result.extra.get("slices") or ()
        ]
    except (KeyError, TypeError, ValueError) as wrong:
        raise InputError(
            f"The `slices` of the attack `{result.attack}` at step {result.step} cannot be read. Correct or remove that line "
            "of results.jsonl."
        ) from wrong


def measurement_entry(line: Mapping[str, Any], folder: Path) -> Measurement:
    """Return one line of ``measurements.jsonl``."""
    metric = Metric(
        float("nan") if line["value"] is None else float(line["value"]),
        line["low"],
        line["high"],
        line["valid"],
        line["reason"],
    )
    return Measurement(
        kind=line["kind"],
        name=line["name"],
        number=_number(line["name"], metric, folder),
        n=scrub_settings(line["n"], folder),
        step=line["step"],
    )


def histogram(member: Sequence[float | int], nonmember: Sequence[float | int]) -> Histogram | None:
    """Return counts of both sides' scores in common bins; None where they cannot be binned.

    The range is that of the central 99 %, so that no single record's score can be read from the edges.
    """
    sides = [np.asarray(s, dtype=np.float64) for s in (member, nonmember)]
    every = np.concatenate([s[np.isfinite(s)] for s in sides])
    if not len(every):
        return None
    low, high = np.quantile(every, [0.005, 0.995])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    counts = [np.histogram(np.clip(s, low, high), edges)[0].tolist() for s in sides]
    return Histogram(edges=[float(f"{e:.6g}") for e in edges], member=counts[0], nonmember=counts[1])


def _number(name: str, metric: Metric, folder: Path, result: AttackResult | None = None) -> Number:
    reason = scrub_text(metric.reason, folder)
    if not math.isfinite(metric.value):
        return Number(value=None, valid=False, reason=reason or f"the value is {metric.value}")
    low, high = _finite(metric.low), _finite(metric.high)
    method = "the attack's own" if low is not None and high is not None else ""
    exact = None if result is None or low is None or high is None else _exact_rate(name, metric, result)
    if exact is not None and low is not None and high is not None:
        # A bootstrap of a rate near 0 or 1 has next to no width, and one at the observed cut takes that cut for known.
        low, high, method = min(low, exact[0]), max(high, exact[1]), "at least the exact interval"
    return Number(value=metric.value, low=low, high=high, method=method, valid=metric.valid, reason=reason)


def _exact_rate(name: str, metric: Metric, result: AttackResult) -> tuple[float, float] | None:
    """Return the exact interval of a true-positive rate at a false-positive rate, None for any other number."""
    members, nonmembers = result.n.get("member", 0), result.n.get("holdout", 0)
    if not name.startswith("tpr_at_fpr_") or members < 1:
        return None
    try:
        rate = float(name.removeprefix("tpr_at_fpr_"))
    except ValueError:
        return None
    if result.roc and nonmembers > 0 and 0 < rate < 1:
        return tpr_interval_on_roc(result.roc, members, nonmembers, rate)
    low, high = clopper_pearson(round(metric.value * members), members)
    return float(low), float(high)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
