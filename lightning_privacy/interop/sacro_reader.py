"""SACRO-ML's reports as our membership results."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError
from lightning_privacy.interop.sacro_sections import (
    Section,
    averaged_metrics,
    evaluated,
    load_arrays,
    major_version,
    read_section,
)

__all__ = ["read_report"]

_ACCESS = {
    "lira": "class scores, and shadow models",
    "meta": "results of other attacks",
    "qmia": "class scores and the records",
    "worstcase": "class scores, and records of known membership",
}
_SLACK = 1e-6  # of rates that were summed up
_MOST_POINTS = 200  # of a curve, as in our own results
_INTERPOLATED = "SACRO-ML gives no intervals, and interpolates true-positive rates between thresholds."

Arrays = Mapping[str, np.ndarray]


def read_report(source: str | os.PathLike[str]) -> list[AttackResult]:
    """Return the membership attacks of a SACRO-ML report, one result a section.

    Attacks are called ``sacro_<name>`` (``sacro_lira``, ``sacro_worstcase``, ``sacro_qmia``); a second section of one
    name gets ``_2``. Repetitions are averaged. Numbers are SACRO-ML's own, as written: ``TPR@0.1`` of a version before 2
    is the rate at 10 % false positives, ``TPR@0.1%`` of version 2 that at 0.1 %. Scores of the records, where the report
    has them, stand in ``extra``. A section that `write_report` wrote comes back as it went in. Pickles are never read.

    Args:
        source: ``report.json``, or the folder that holds it and its ``.npz`` files.

    Raises:
        InputError: there is no such file, it is no JSON or no report, it holds no membership attack, or a section does
            not say by which version it was written.

    Example:
        >>> import tempfile
        >>> instances = {"instance_0": {"AUC": 0.75, "TPR@0.1": 0.4}}
        >>> section = {
        ...     "metadata": {"sacroml_version": "1.4.0", "attack_name": "LiRA Attack"},
        ...     "attack_experiment_logger": {"attack_instance_logger": instances},
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "report.json").write_text(json.dumps({"LiRA Attack_1": section}))
        ...     (found,) = read_report(folder)
        >>> found.attack, {name: metric.value for name, metric in found.metrics.items()}
        ('sacro_lira', {'auroc': 0.75, 'tpr_at_fpr_0.1': 0.4})
    """
    path = Path(source)
    path = path / "report.json" if path.is_dir() else path
    sections = _sections(path)
    membership = [section for section in sections if section.measures_membership]
    others = [f"{s.name} ({s.failure})" if s.failure else s.name for s in sections if not s.measures_membership]
    if not membership:
        what = f"only {', '.join(others)}" if others else "nothing"
        raise InputError(
            f"{path} holds no membership attack with an AUC ({what}); name the report of a finished attack."
        )
    also = (f"The report also holds {', '.join(others)}, without a membership AUC.",) if others else ()
    taken: dict[str, int] = {}
    results = []
    for section in membership:
        result = _ours(section, path) or _theirs(section, path)
        taken[result.attack] = taken.get(result.attack, 0) + 1
        if taken[result.attack] > 1:
            result = replace(result, attack=f"{result.attack}_{taken[result.attack]}")
        results.append(replace(result, notes=(*result.notes, *also)))
    return results


def _sections(path: Path) -> list[Section]:
    if not path.is_file():
        raise InputError(f"{path} is not there; name a SACRO-ML report.json or its folder.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as gone:
        raise InputError(f"{path} cannot be read: {gone.strerror}.") from gone
    except (ValueError, RecursionError) as wrong:
        raise InputError(f"{path} is no JSON ({wrong}); name a SACRO-ML report.json.") from wrong
    if isinstance(raw, dict) and isinstance(raw.get("attacks"), dict):
        raw = raw["attacks"]  # the layout with catalogues that SACRO-ML's development branch writes
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path} holds no attacks; name the report.json of a finished attack.")
    return [read_section(key, value, path) for key, value in raw.items()]


def _ours(section: Section, path: Path) -> AttackResult | None:
    """Return the result that `write_report` put into a section, or None for a section of SACRO-ML's."""
    written = section.metadata.get("lightning_privacy")
    if written is None:
        return None
    arrays = load_arrays(section.instances[0], path.parent) or {}
    try:
        own = written["result"]
        member, score = arrays["individual.member"] == 1, arrays["individual.score"].astype(np.float64)
        scores = {"member_scores": score[member].tolist(), "nonmember_scores": score[~member].tolist()}
        metrics = {
            name: {**each, "value": math.nan if each["value"] is None else each["value"]}
            for name, each in own["metrics"].items()
        }
        return AttackResult.from_json(json.dumps({**own, "metrics": metrics, "extra": {**own["extra"], **scores}}))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as wrong:
        raise InputError(
            f"{path}: `{section.key}` says that lightning_privacy wrote it, but its `metadata.lightning_privacy` is not "
            "what that writes; take `lightning_privacy` out of it to read SACRO-ML's numbers alone."
        ) from wrong


def _theirs(section: Section, path: Path) -> AttackResult:
    version = major_version(section, path)
    metrics, without = averaged_metrics(section, version, path)
    first, repetitions = section.instances[0], len(section.instances)
    said = section.metadata["sacroml_version"]
    notes = [f"Read from a report of SACRO-ML {said}. {_INTERPOLATED}"]
    if repetitions > 1:
        notes.append(f"The numbers are means over {repetitions} repetitions.")
    if without:
        notes.append(f"SACRO-ML gave no value for {', '.join(without)}.")
    extra: dict[str, Any] = {
        "sacro_attack": section.name,
        "sacro_version": said,
        "log_id": section.log_id,
        "repetitions": repetitions,
    }
    roc: tuple[tuple[float, float], ...] = ()
    if repetitions == 1:
        arrays = load_arrays(first, path.parent)
        if arrays is None:
            notes.append(f"The arrays of the report, {first['arrays_file']}, are missing.")
        else:
            roc, scores = _curve(arrays, path), _scores(arrays, path)
            extra |= scores
    name = _short(section.name)
    return AttackResult(
        family="membership",
        attack=f"sacro_{name}",
        access=_ACCESS.get(name, "not said in the report"),
        seed=_seed(section.metadata.get("attack_params")),
        split_hash="",
        n=evaluated(section, path),
        metrics=metrics,
        roc=roc,
        notes=tuple(notes),
        created=_iso(section.log_time),
        extra=extra,
    )


def _short(name: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return words.removesuffix("_attack") or words or "attack"


def _seed(params: Any) -> int:
    params = params if isinstance(params, dict) else {}
    found = params.get("random_state", params.get("reproduce_split"))
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def _iso(time: str) -> str:
    try:
        return datetime.strptime(time, "%d/%m/%Y %H:%M:%S").isoformat()
    except ValueError:
        return time


def _curve(arrays: Arrays, path: Path) -> tuple[tuple[float, float], ...]:
    if "fpr" not in arrays or "tpr" not in arrays:
        return ()
    fpr, tpr = (_vector(arrays, key, path) for key in ("fpr", "tpr"))
    if len(fpr) != len(tpr):
        raise InputError(f"{path}: its curve has {len(fpr)} false-positive and {len(tpr)} true-positive rates.")
    if len(fpr) and (min(fpr.min(), tpr.min()) < -_SLACK or max(fpr.max(), tpr.max()) > 1 + _SLACK):
        raise InputError(f"{path}: its curve has rates outside [0, 1].")
    keep = np.unique(np.linspace(0, len(fpr) - 1, _MOST_POINTS).round().astype(int))
    return tuple((float(x), float(y)) for x, y in zip(fpr[keep], tpr[keep], strict=True))


def _scores(arrays: Arrays, path: Path) -> dict[str, Any]:
    """Return the records' scores by side, with the cut above which SACRO-ML calls them members."""
    if "individual.member_prob" not in arrays or "individual.member" not in arrays:
        return {}
    prob, member = (_vector(arrays, f"individual.{key}", path) for key in ("member_prob", "member"))
    if len(prob) != len(member):
        raise InputError(
            f"{path}: it has {len(prob)} scores of records but says of {len(member)} whether they are members."
        )
    if not np.isin(member, (0, 1)).all():
        raise InputError(f"{path}: `individual.member` holds more than 1 for members and 0 for others.")
    # Its QMIA and online LiRA call a margin or a log ratio "member_prob"; their cut is zero.
    inside = bool(((prob >= 0) & (prob <= 1)).all())
    sides = {"member_scores": prob[member == 1].tolist(), "nonmember_scores": prob[member != 1].tolist()}
    return {**sides, "threshold": 0.5 if inside else 0.0}


def _vector(arrays: Arrays, key: str, path: Path) -> np.ndarray:
    found = arrays[key]
    if found.ndim != 1 or found.dtype.kind not in "biuf" or not np.isfinite(found).all():
        raise InputError(f"{path}: `{key}` is no list of finite numbers.")
    return found.astype(np.float64)
