"""The numbers that a policy may speak of: their names, what they are in words, and whether an attack or a run has them."""

import math
import re
from collections.abc import Iterable

from lightning_privacy.errors import InputError
from lightning_privacy.report.dossier.leakage_names import LEAKAGE_FAMILIES, LEAKAGE_METRICS

__all__ = ["FAMILIES", "RUN_METRICS", "check_metric", "family_title", "is_of_run", "metric_label", "table_columns"]

FAMILIES = ("membership", "inversion", "class_inversion", "leakage", "lock", "detection_lock", "attribute")

_MEMBERSHIP = {
    "advantage": "advantage (TPR minus FPR)",
    "auroc": "AUROC",
    "auroc_if_significant": "AUROC where significant at 5 % (else 0.5)",
    "balanced_accuracy": "balanced accuracy",
    "epsilon_lower": "lower bound of epsilon",
}
_INVERSION = {
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "mse": "MSE",
    "retrieval": "victims retrieved",
    "gain_over_floor_db": "dB above the floor",
    "leak": "leak (0 floor, 1 ceiling)",
}
_CLASS_INVERSION = {
    "recognised": "pictures in which a judge sees the class",
    "feature_distance": "distance in features to the class's training pictures",
    "natural_distance": "the same between training pictures of a class",
}
_LOCK = {
    "accuracy": "accuracy",
    "box_ap50": "average precision of boxes at IoU 0.5",
    "share_of_up": "share of what is reached with the key",
}
RUN_METRICS = {
    "generalisation_gap": "generalisation gap (training minus validation accuracy)",
    "members_flagged_by_all": "members flagged by every attack",
    "members_flagged_by_all_excess": "members flagged by every attack beyond what non-members would give",
    "share_of_significant_attacks": "share of membership attacks whose AUROC is significant at 5 %",
}
"""Of the run as a whole, not of one attack."""

_MEASUREMENT = re.compile(r"(utility|quality|cost|privacy)/[A-Za-z0-9_.\-]+")
_FAMILY_NAMES = {
    "membership": "who was in the training set",
    "inversion": "reconstruction of the model's inputs",
    "class_inversion": "pictures of the model's classes",
    **LEAKAGE_FAMILIES,
    "lock": "use of a locked model without its key",
    "lock_reference": "the key, chance, and training without the model",
    "detection_lock": "use of a locked detector without its key",
    "detection_lock_reference": "the key, and training without the detector",
    "attribute": "sensitive attributes",
    "structural": "structural checks",
    "canaries": "planted canaries",
}
_RATE = re.compile(r"(tpr_at_fpr|ppv_at_prior)_([0-9.eE\-]+)")
_SNAKE = re.compile(r"[a-z][a-z0-9_.]*")


def is_of_run(metric: str) -> bool:
    """Return whether a metric belongs to the run and not to one attack."""
    return metric in RUN_METRICS or "/" in metric


def check_metric(metric: str, family: str = "membership") -> None:
    """Refuse a metric that nothing could supply.

    Args:
        metric: Its name in a policy.
        family: Family of the attacks that are asked for it. Families other than membership may name any metric in snake
            case; one that no attack has is missing evidence, which never releases a model.

    Raises:
        InputError: it is unknown; the message lists those there are.
    """
    if metric in RUN_METRICS or _MEASUREMENT.fullmatch(metric) or metric == "epsilon_lower":
        return
    rate = _RATE.fullmatch(metric)
    if family != "membership":
        known = _SNAKE.fullmatch(metric) is not None
    elif rate is not None:
        known = _is_rate(rate[2])
    else:
        known = metric in _MEMBERSHIP
    if not known:
        raise InputError(
            f"There is no metric `{metric}` for {family} attacks. There are {', '.join(sorted(_MEMBERSHIP))}, "
            f"tpr_at_fpr_<rate> and ppv_at_prior_<share>, both between 0 and 1; of the run: {', '.join(RUN_METRICS)}; "
            "measurements as kind/name, kind being utility, quality, cost or privacy."
        )


def family_title(family: str) -> str:
    """Return a family of attacks in words.

    Example:
        >>> family_title("inversion"), family_title("side_channel")
        ("reconstruction of the model's inputs", 'side channel')
    """
    return _FAMILY_NAMES.get(family, family.replace("_", " "))


def table_columns(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return metrics for a table: those that matter most, in the order of a reader's interest, and the others by name.

    Args:
        names: Metrics of a family's attacks.
    """
    every = set(names)
    rates = sorted((n for n in every if n.startswith("tpr_at_fpr_")), key=lambda n: n.rpartition("_")[2], reverse=True)
    order = [
        "auroc",
        *rates,
        "epsilon_lower",
        "psnr",
        "ssim",
        "aligned_ssim",
        "success",
        "retrieval",
        "leak",
        "recognised",
        "accuracy",
        "box_ap50",
        "share_of_up",
    ]
    first = [n for n in order if n in every]
    return first, sorted(every - set(first))


def metric_label(metric: str) -> str:
    """Return a metric in words.

    Example:
        >>> metric_label("tpr_at_fpr_0.001")
        'TPR at 0.1 % FPR'
    """
    rate = _RATE.fullmatch(metric)
    if rate is not None and _is_rate(rate[2]):
        share = f"{100 * float(rate[2]):g} %"
        return f"TPR at {share} FPR" if rate[1] == "tpr_at_fpr" else f"PPV at a prior of {share}"
    return (
        _MEMBERSHIP.get(metric)
        or _INVERSION.get(metric)
        or _CLASS_INVERSION.get(metric)
        or LEAKAGE_METRICS.get(metric)
        or _LOCK.get(metric)
        or RUN_METRICS.get(metric)
        or metric.replace("_", " ")
    )


def _is_rate(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and 0 < value < 1
