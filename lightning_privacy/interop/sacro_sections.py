"""What one section of a SACRO-ML report says: its version, its numbers, its arrays."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_privacy.core.npz_file import read_npz
from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError

__all__ = ["Section", "averaged_metrics", "evaluated", "load_arrays", "major_version", "read_section"]

# Ours for theirs. Their true-positive rates at low false-positive rates are read apart, because their keys changed meaning.
_NAMES = {
    "AUC": "auroc",
    "ACC": "accuracy",
    "Advantage": "advantage",
    "P_HIGHER_AUC": "auroc_p_value",
    "FDIF01": "fdif01",
    "PDIF01": "pdif01",
}
_TPR_KEY = re.compile(r"TPR@((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)(%?)")
_RANGES = {
    **dict.fromkeys(("AUC", "ACC", "TPR", "TNR", "P_HIGHER_AUC"), (0.0, 1.0)),
    **dict.fromkeys(("Advantage", "FDIF01"), (-1.0, 1.0)),
    "n_neg_test_examples": (0.0, math.inf),
}
"""Where SACRO-ML's numbers can lie; its rates at a false-positive rate in [0, 1] too."""
_SLACK = 1e-6  # they are rounded, and interpolated
_CURVE, _RECORDS = ("fpr", "tpr"), ("member_prob", "member", "score")
_LEAST_FALSE_POSITIVES = 10  # as in our own membership metrics


@dataclass(frozen=True)
class Section:
    """One attack of a report.

    Args:
        key: Its key in the report.
        metadata: Its metadata.
        log_id: Its identity.
        log_time: Its time, as written.
        instances: The numbers of its repetitions; none where it failed or has none.
        failure: Why it failed, where it says so.
    """

    key: str
    metadata: Mapping[str, Any]
    log_id: str
    log_time: str
    instances: tuple[Mapping[str, Any], ...]
    failure: str

    @property
    def name(self) -> str:
        """The attack's name, such as ``LiRA Attack``."""
        return str(self.metadata.get("attack_name") or self.key.rpartition("_")[0] or self.key)

    @property
    def measures_membership(self) -> bool:
        """Whether every repetition has an AUC, which only membership attacks have."""
        return bool(self.instances) and all("AUC" in instance for instance in self.instances)


def read_section(key: str, raw: Any, source: Path) -> Section:
    """Return a section, checked for its outer shape.

    Raises:
        InputError: it is none.
    """
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    if not isinstance(metadata, dict):
        raise InputError(f"{source} is no SACRO-ML report: `{key}` has no `metadata`. Name its report.json.")
    logger = raw.get("attack_experiment_logger")
    logged = logger.get("attack_instance_logger") if isinstance(logger, dict) else None
    instances = tuple(logged.values()) if isinstance(logged, dict) else ()
    if not all(isinstance(instance, dict) for instance in instances):
        raise InputError(f"{source}: `{key}` has a repetition that is no mapping of names to numbers.")
    failure = str(raw.get("fail_reason") or "") if raw.get("status") == "failed" else ""
    return Section(key, metadata, str(raw.get("log_id", "")), str(raw.get("log_time", "")), instances, failure)


def major_version(section: Section, source: Path) -> int:
    """Return the major version of the SACRO-ML that wrote a section.

    Raises:
        InputError: the section does not say, so that its ``TPR@0.1`` may mean a false-positive rate of 10 % or 0.1 %.
    """
    said = section.metadata.get("sacroml_version")
    match = re.match(r"\s*v?([0-9]+)(?:\.|\s*$)", said) if isinstance(said, str) else None
    if match is None:
        raise InputError(
            f"{source}: `{section.key}` does not say which SACRO-ML wrote it (`metadata.sacroml_version` is {said!r}), but "
            "`TPR@0.1` means a false-positive rate of 10 % before version 2 and 0.1 % from then on; add the version."
        )
    return int(match[1])


def averaged_metrics(section: Section, version: int, source: Path) -> tuple[dict[str, Metric], tuple[str, ...]]:
    """Return a section's numbers under our names, averaged over its repetitions, and the keys without a value.

    Args:
        section: The section.
        version: Its major version: up to 1 the number in ``TPR@x`` is a rate, from 2 on ``TPR@x%`` is a percentage.
        source: For errors.

    Raises:
        InputError: a key and the version contradict each other, or a value is no number.
    """
    named = {key: name for key in section.instances[0] if (name := _our_name(key, version, section, source))}
    every = {key: _numbers(section, key, source) for key in [*named, "TPR", "TNR"]}
    n_nonmember = _numbers(section, "n_neg_test_examples", source)
    found = {
        named[key]: Metric(float(np.mean(every[key])), None, None, *_validity(named[key], n_nonmember))
        for key in named
        if every[key]
    }
    if every["TPR"] and every["TNR"]:
        found["balanced_accuracy"] = Metric(float(np.mean(every["TPR"]) + np.mean(every["TNR"])) / 2)
    return found, tuple(key for key in named if not every[key])


def _our_name(key: str, version: int, section: Section, source: Path) -> str | None:
    if key in _NAMES:
        return _NAMES[key]
    if not key.startswith("TPR@"):
        return None
    match = _TPR_KEY.fullmatch(key)
    if match is None or not 0 < float(match[1]) <= (100 if match[2] else 1):
        raise InputError(f"{source}: `{key}` of `{section.key}` names no false-positive rate. Correct the key.")
    if bool(match[2]) != (version >= 2):
        raise InputError(
            f"{source}: `{section.key}` is of SACRO-ML {section.metadata['sacroml_version']} but has the key `{key}`, which "
            f"{'lacks' if version >= 2 else 'has'} the percent sign that marks version 2; what it means cannot be told. "
            "Correct the version or the key."
        )
    # Through decimal digits, so that 0.1 % becomes 0.001 and not 0.0010000000000000002.
    return f"tpr_at_fpr_{float(match[1]) / (100 if version >= 2 else 1):.6g}"


def _numbers(section: Section, key: str, source: Path) -> list[float]:
    """Return a key's value in every repetition, or nothing where one of them lacks it."""
    values = [instance.get(key) for instance in section.instances]
    wrong = [
        value
        for value in values
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float))
    ]
    if wrong:
        raise InputError(f"{source}: `{key}` of `{section.key}` is {wrong[0]!r}, which is no number.")
    low, high = (0.0, 1.0) if key.startswith("TPR@") else _RANGES.get(key, (-math.inf, math.inf))
    found = [_float(value) for value in values if value is not None]
    found = [value for value in found if math.isfinite(value)]
    beyond = [value for value in found if not low - _SLACK <= value <= high + _SLACK]
    if beyond:
        raise InputError(
            f"{source}: `{key}` of `{section.key}` is {beyond[0]:g}, and can only lie between {low:g} and {high:g}."
        )
    return found if len(found) == len(values) else []


def _float(value: float | int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def evaluated(section: Section, source: Path) -> dict[str, int]:
    """Return how many records a section's first repetition was judged on, by role, as far as it says.

    Args:
        section: The section.
        source: For errors.

    Raises:
        InputError: a count is no whole number of at least 0.
    """
    keys = {"member": "n_pos_test_examples", "holdout": "n_neg_test_examples"}
    found = {role: section.instances[0].get(key) for role, key in keys.items()}
    for role, count in found.items():
        whole = isinstance(count, int) or (isinstance(count, float) and count.is_integer())
        if count is not None and (isinstance(count, bool) or not whole or count < 0):
            raise InputError(
                f"{source}: `{keys[role]}` of `{section.key}` is {count!r}, which is no number of records."
            )
    return {role: int(count) for role, count in found.items() if count is not None}


def _validity(name: str, n_nonmember: Sequence[float]) -> tuple[bool, str]:
    prefix, _, rate = name.rpartition("_")
    if prefix != "tpr_at_fpr":
        return True, ""
    if not n_nonmember:
        return False, "the report does not say how many non-members there were"
    if min(n_nonmember) * float(rate) >= _LEAST_FALSE_POSITIVES:
        return True, ""
    needed = math.ceil(_LEAST_FALSE_POSITIVES / float(rate))
    return (
        False,
        f"{min(n_nonmember):g} non-members cannot support a false-positive rate of {rate}: at least {needed} needed",
    )


def load_arrays(instance: Mapping[str, Any], folder: Path) -> dict[str, np.ndarray] | None:
    """Return a repetition's curves and per-record values, ``individual.<name>``; None where its ``.npz`` is missing.

    Args:
        instance: The repetition; what its ``arrays_file`` holds goes before what it holds itself.
        folder: Where the report lies.

    Raises:
        InputError: ``arrays_file`` is no plain file name, or the file holds anything but numbers (pickles are refused).
    """
    individual = instance.get("individual")
    records = individual if isinstance(individual, dict) else {}
    inline = {key: instance.get(key) for key in _CURVE} | {f"individual.{key}": records.get(key) for key in _RECORDS}
    try:
        arrays = {key: np.asarray(value) for key, value in inline.items() if isinstance(value, list)}
    except ValueError as wrong:
        raise InputError(f"The report in {folder} has a curve or scores that are no list of numbers.") from wrong
    name = instance.get("arrays_file")
    if name is None:
        return arrays
    if not isinstance(name, str) or Path(name).name != name:
        raise InputError(f"The report in {folder} names {name!r} for its arrays; they must lie beside it.")
    if not (folder / name).is_file():
        return arrays or None
    return arrays | read_npz(folder / name)
