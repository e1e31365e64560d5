"""Our membership results as a report that SACRO-ML's own tools read."""

import json
import math
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import write_atomically
from lightning_privacy.errors import InputError
from lightning_privacy.interop.sacro_metrics import Scores, auc_p_value, sacro_metrics, sacro_roc
from lightning_privacy.metrics.membership import null_auroc_sd

__all__ = ["LIRA", "QMIA", "REPORT_VERSION", "member_probability", "write_report"]

REPORT_VERSION = "2.0.1"
"""SACRO-ML's release whose report format is written."""

LIRA, QMIA = "LiRA Attack", "QMIA Attack"
_FAMILY_OF = {"lira": LIRA, "qmia": QMIA, "quantile_regression": QMIA}
_SCORES = ("member_scores", "nonmember_scores")
_P_THRESHOLD = 0.05  # SACRO-ML's default for "significant"
FORMULA = "1/2 + z / (2 (1 + |z|)) with z = (score - threshold) / scale"


def member_probability(scores: Scores, threshold: float | int, scale: float | int) -> Scores:
    """Return p = 1/2 + z / (2 (1 + |z|)) with z = (score - threshold) / scale: rising, in [0, 1], 1/2 at the threshold.

    It is no calibrated probability. Unlike the logistic function it keeps apart large scores, which would all round to
    one and tie where the attack is surest.

    Args:
        scores: The attack's scores, higher = more member-like.
        threshold: The attack's own cut, found on its fit data.
        scale: Distance from it at which p is 1/4 or 3/4; above 0.

    Example:
        >>> member_probability(np.array([-1.0, 2.0, 3.0]), 2.0, 1.0).tolist()
        [0.125, 0.5, 0.75]
    """
    with np.errstate(invalid="ignore"):
        z = (scores - threshold) / scale
        p = 0.5 + 0.5 * z / (1 + np.abs(z))
    return np.where(np.isinf(z), (z > 0).astype(np.float64), p)


def write_report(results: Sequence[AttackResult], folder: str | os.PathLike[str]) -> Path:
    """Write results as ``report.json`` and one ``.npz`` a result, in the format of SACRO-ML 2.0.

    Its text report, its summaries and its meta attack (``use_existing_only``) read it. Every number under its keys is
    computed from ``individual.member_prob`` by its definitions; our own numbers, with their intervals, and the formula
    of ``member_prob`` stand in ``metadata.lightning_privacy``. Records are in the order members, non-members, as its
    meta attack takes for granted. An existing ``report.json`` is added to, as by SACRO-ML itself.

    Attacks are named as in our results, except that LiRA and quantile regression take SACRO-ML's own names, ``LiRA
    Attack`` and ``QMIA Attack``, by which the meta attack knows them. It takes sections of one name for repetitions of
    one attack, so of several variants of LiRA only the one of the highest ``fit_auroc`` takes the name.

    Args:
        results: Of the family membership, with ``member_scores``, ``nonmember_scores`` and ``threshold`` in ``extra``.
        folder: Where to write; made if it is not there.

    Returns:
        The path of ``report.json``.

    Raises:
        InputError: there is no result, one is of another family or lacks its scores or threshold, or the folder holds
            a ``report.json`` that is no report.

    Example:
        >>> import tempfile
        >>> scores = {"member_scores": [2.0, 3.0], "nonmember_scores": [1.0, 2.5], "threshold": 1.5}
        >>> result = AttackResult("membership", "rmia", "class scores", 0, "", {}, {}, extra=scores)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (section,) = json.loads(write_report([result], folder).read_text()).values()
        >>> section["attack_experiment_logger"]["attack_instance_logger"]["instance_0"]["AUC"]
        0.75
    """
    if not results:
        raise InputError("There is no result to report; give at least one membership result.")
    path = Path(folder) / "report.json"
    report = _existing(path)
    names = _names(results)
    sections = [_section(result, name, Path(folder)) for result, name in zip(results, names, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    for section, arrays in sections:
        instance = section["attack_experiment_logger"]["attack_instance_logger"]["instance_0"]
        np.savez_compressed(path.parent / instance["arrays_file"], **arrays)
        report[f"{section['metadata']['attack_name']}_{section['log_id']}"] = section
    write_atomically(path, json.dumps(_plain(report), indent=1, allow_nan=False))
    return path


def _names(results: Iterable[AttackResult]) -> list[str]:
    listed = list(results)
    holder: dict[str, int] = {}
    for place, result in enumerate(listed):
        family = _FAMILY_OF.get(result.attack) or (LIRA if result.attack.startswith("lira_") else None)
        if family and (family not in holder or _strength(result) > _strength(listed[holder[family]])):
            holder[family] = place
    named = {place: family for family, place in holder.items()}
    return [named.get(place, result.attack) for place, result in enumerate(listed)]


def _strength(result: AttackResult) -> float:
    return -math.inf if result.fit_auroc is None else result.fit_auroc


def _section(result: AttackResult, name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    scores, member, threshold = _scored(result)
    scale = float(np.median(np.abs(scores - threshold)))
    scale = scale if 0 < scale < math.inf else 1.0
    member_prob = member_probability(scores, threshold, scale)
    numbers, roc = sacro_metrics(member_prob, member), sacro_roc(member_prob, member)
    log_id = str(uuid.uuid4())
    individual = {"member_prob": member_prob, "member": member, "score": scores}
    arrays: dict[str, Any] = {"fpr": roc.fpr, "tpr": roc.tpr, "roc_thresh": np.append(1.0, roc.thresholds[1:])}
    arrays |= {f"individual.{key}": value for key, value in individual.items()}
    # Its meta attack looks for `individual` in the JSON alone, although its own attacks move it to the .npz.
    instance = {**numbers, "individual": individual, "arrays_file": f"report_arrays_{log_id[:8]}_instance_0.npz"}
    own = asdict(result)
    own["extra"] = {key: value for key, value in result.extra.items() if key not in _SCORES}
    section = {
        "log_id": log_id,
        "log_time": datetime.now(UTC).strftime("%d/%m/%Y %H:%M:%S"),
        "metadata": {
            "sacroml_version": REPORT_VERSION,
            "attack_name": name,
            "attack_params": {
                "output_dir": folder.as_posix(),
                "write_report": True,
                "p_thresh": _P_THRESHOLD,
                "report_individual": True,
                "random_state": result.seed,
            },
            "global_metrics": _global_metrics(numbers),
            "lightning_privacy": {
                "result": own,
                "member_prob": {"formula": FORMULA, "threshold": threshold, "scale": scale},
            },
        },
        "attack_experiment_logger": {"attack_instance_logger": {"instance_0": instance}},
    }
    return section, arrays


def _global_metrics(numbers: dict[str, float | int]) -> dict[str, str]:
    sizes = int(numbers["n_pos_test_examples"]), int(numbers["n_neg_test_examples"])
    margin = 3 * null_auroc_sd(*sizes)
    p_values = {"PDIF_sig": math.exp(-numbers["PDIF01"]), "AUC_sig": auc_p_value(numbers["AUC"], *sizes)}
    verdicts = {
        key: f"{'Significant' if p <= _P_THRESHOLD else 'Not significant'} at p={_P_THRESHOLD}"
        for key, p in p_values.items()
    }
    return {**verdicts, "null_auc_3sd_range": f"{0.5 - margin} -> {0.5 + margin}"}


def _scored(result: AttackResult) -> tuple[np.ndarray, np.ndarray, float]:
    if result.family != "membership":
        raise InputError(
            f"The result of `{result.attack}` is of the family {result.family}, which SACRO-ML's reports do not know; "
            "leave it out."
        )
    missing = [key for key in (*_SCORES, "threshold") if result.extra.get(key) is None]
    if missing:
        raise InputError(
            f"The result of `{result.attack}` lacks {', '.join(missing)} in `extra`, which SACRO-ML's numbers are computed "
            "from; an audit keeps them for at most 5000 records a side."
        )
    sides = [np.asarray(result.extra[key], dtype=np.float64) for key in _SCORES]
    scores = np.concatenate(sides)
    if np.isnan(scores).any() or not all(map(len, sides)):
        raise InputError(
            f"The result of `{result.attack}` has {len(sides[0])} and {len(sides[1])} scores, {int(np.isnan(scores).sum())} "
            "of them NaN; a report needs numbers for members and non-members."
        )
    return scores, np.repeat([1, 0], [len(side) for side in sides]), float(result.extra["threshold"])


def _existing(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as wrong:
        raise InputError(
            f"{path} is there but is no JSON, so nothing can be added to it; name another folder."
        ) from wrong
    if not isinstance(found, dict):
        raise InputError(f"{path} is there but is no SACRO-ML report; name another folder.")
    return found


def _plain(value: Any) -> Any:
    """Return plain JSON values; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
