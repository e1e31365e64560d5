"""The numbers of a SACRO-ML report, by its definitions and under its names."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lightning_privacy.errors import InputError
from lightning_privacy.metrics.membership import null_auroc_sd

__all__ = ["RocCurve", "auc_p_value", "sacro_metrics", "sacro_roc"]

FPR_PERCENT = (0.5, 0.2, 0.1, 0.01, 0.001, 0.00001)  # SACRO-ML 2.0: the key `TPR@0.1%` means a rate of 0.001
_LEAST_LOG_P = -115.13  # SACRO-ML writes this where a p-value is below 1e-50

Scores = Float[np.ndarray, " records"]
Members = Int[np.ndarray, " records"]


@dataclass(frozen=True)
class RocCurve:
    """Corners of a receiver operating characteristic, from (0, 0) to (1, 1).

    Args:
        fpr: False-positive rates.
        tpr: True-positive rates.
        thresholds: Scores at or above which a record is called a member; the first is infinite.
    """

    fpr: Float[np.ndarray, " points"]
    tpr: Float[np.ndarray, " points"]
    thresholds: Float[np.ndarray, " points"]

    def tpr_at(self, fpr: float | int) -> float:
        """Return the true-positive rate at a false-positive rate, interpolated through the threshold as SACRO-ML does."""
        threshold = np.interp(fpr, self.fpr, self.thresholds)
        return float(np.interp(threshold, self.thresholds[::-1], self.tpr[::-1]))


def sacro_roc(member_prob: Scores, member: Members) -> RocCurve:
    """Return the curve's corners; points on a straight line between two others are left out.

    Args:
        member_prob: Scores, higher = more member-like.
        member: 1 for members, 0 for non-members.

    Example:
        >>> sacro_roc(np.array([0.1, 0.6, 0.45, 0.9]), np.array([0, 0, 1, 1])).fpr.tolist()
        [0.0, 0.0, 0.5, 0.5, 1.0]
    """
    order = np.argsort(-member_prob, kind="stable")
    scores, truth = member_prob[order], member[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    tp = np.cumsum(truth)[last_of_ties]
    fp = 1 + last_of_ties - tp
    if len(tp) > 2:
        corner = np.concatenate([[True], (np.diff(fp, 2) != 0) | (np.diff(tp, 2) != 0), [True]])
        tp, fp, last_of_ties = tp[corner], fp[corner], last_of_ties[corner]
    tpr, fpr = (np.concatenate([[0.0], count / count[-1]]) for count in (tp, fp))
    return RocCurve(fpr, tpr, np.concatenate([[np.inf], scores[last_of_ties]]))


def auc_p_value(auc: float | int, n_member: int, n_nonmember: int) -> float:
    """Return the probability of a higher AUC where scores say nothing (normal approximation).

    Example:
        >>> round(auc_p_value(0.6, 100, 100), 4)
        0.0073
    """
    return 1 - _normal_cdf((auc - 0.5) / null_auroc_sd(n_member, n_nonmember))


def sacro_metrics(member_prob: Scores, member: Members) -> dict[str, float | int]:
    """Return a SACRO-ML 2.x report's numbers of one attack, for its keys.

    One definition differs: where scores tie at the edge of the highest or lowest tenth, its ``FDIF01`` depends on the
    order of the records (constant scores give -1 where members come first); ours takes the mean over all orders of the
    tied records, which is the same number where nothing ties.

    Args:
        member_prob: One number in [0, 1] a record; above 1/2 the record is called a member.
        member: 1 for members, 0 for non-members; both must occur.

    Raises:
        InputError: a side is empty, or a score is no number in [0, 1].

    Example:
        >>> found = sacro_metrics(np.array([0.1, 0.6, 0.2, 0.45, 0.9, 0.99]), np.array([0, 0, 0, 1, 1, 1]))
        >>> found["TPR"], found["AUC"], found["FDIF01"]
        (0.66666667, 0.88888889, 1.0)
    """
    n_member, n_nonmember = int(member.sum()), int((1 - member).sum())
    if not n_member or not n_nonmember:
        raise InputError(
            f"Membership metrics need members and non-members, but there are {n_member} and {n_nonmember}."
        )
    if not ((member_prob >= 0) & (member_prob <= 1)).all():
        raise InputError("A member probability lies outside [0, 1] or is NaN; map the attack's scores into it first.")
    called = member_prob > 0.5
    tp, fp = int(called[member == 1].sum()), int(called[member == 0].sum())
    fn, tn = n_member - tp, n_nonmember - fp
    found: dict[str, float | int] = {
        "TPR": _share(tp, n_member),
        "FPR": _share(fp, n_nonmember),
        "FAR": _share(fp, tp + fp),
        "TNR": _share(tn, n_nonmember),
        "PPV": _share(tp, tp + fp),
        "NPV": _share(tn, tn + fn),
        "FNR": _share(fn, n_member),
        "ACC": _share(tp + tn, len(member)),
    }
    found["F1score"] = _share(2 * found["PPV"] * found["TPR"], found["PPV"] + found["TPR"])
    found["Advantage"] = abs(found["TPR"] - found["FPR"])
    roc = sacro_roc(member_prob, member)
    found["AUC"] = round(float(np.trapezoid(roc.tpr, roc.fpr)), 8)
    found["P_HIGHER_AUC"] = auc_p_value(found["AUC"], n_member, n_nonmember)
    for suffix, share in (("01", 0.1), ("02", 0.2), ("001", 0.01)):
        found |= _extremes(member_prob, member, suffix, share)
    found["pred_prob_var"] = float(member_prob.var())
    found |= {f"TPR@{percent:g}%": roc.tpr_at(percent / 100) for percent in FPR_PERCENT}
    found["n_pos_test_examples"], found["n_neg_test_examples"] = n_member, n_nonmember
    return found


def _share(part: float | int, whole: float | int) -> float:
    return round(part / whole, 8) if whole else 0.0


def _normal_cdf(x: float | int) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _extremes(member_prob: Scores, member: Members, suffix: str, share: float) -> dict[str, float]:
    """Return the members' shares among the highest and the lowest scores, their difference and -log of its p-value."""
    levels, level, size = np.unique(member_prob, return_inverse=True, return_counts=True)
    expected = (np.bincount(level, weights=member, minlength=len(levels)) / size)[np.sort(level)]
    count = math.ceil(len(member) * share)
    low, high, overall = float(expected[:count].mean()), float(expected[-count:].mean()), float(member.mean())
    p_value = 1 - _normal_cdf((high - low) / math.sqrt(2 * overall * (1 - overall) / count))
    log_p = _LEAST_LOG_P if p_value < 1e-50 else math.log(p_value)
    return {f"FMAX{suffix}": high, f"FMIN{suffix}": low, f"FDIF{suffix}": high - low, f"PDIF{suffix}": -log_p}
