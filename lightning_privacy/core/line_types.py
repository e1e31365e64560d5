"""What a line of a run's files may hold: the type of every field, checked where it is read."""

import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["check_measurement", "check_result"]

Check = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words, and whether it is."""

_LARGEST = 2.0**1023  # a longer integer of JSON has no float


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _list_of(each: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(each(entry) for entry in value)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(end) for end in value)


_TEXT: Check = ("a text", lambda value: isinstance(value, str))
_FLAG: Check = ("true or false", lambda value: isinstance(value, bool))
_WHOLE: Check = ("a whole number", _is_whole)
_COUNT: Check = ("a whole number of at least 0", _is_count)
_NUMBER: Check = ("a number", _is_number)
_NUMBER_OR_NULL: Check = ("a number or null", lambda value: value is None or _is_number(value))
_NUMBERS: Check = ("a list of numbers", _list_of(_is_number))
_LIST: Check = ("a list", lambda value: isinstance(value, list))
_MAPPING: Check = ("a mapping", lambda value: isinstance(value, dict))
_COUNTS: Check = (
    "a mapping of roles to whole numbers of at least 0",
    lambda value: isinstance(value, dict) and all(_is_count(count) for count in value.values()),
)

_RESULT: Mapping[str, Check] = {
    **dict.fromkeys(("family", "attack", "access", "split_hash", "created"), _TEXT),
    **dict.fromkeys(("converged", "strongest"), _FLAG),
    **dict.fromkeys(("step", "epoch"), _COUNT),
    "seed": _WHOLE,
    "n": _COUNTS,
    "metrics": _MAPPING,
    "fit_auroc": _NUMBER_OR_NULL,
    "roc": ("a list of pairs of numbers", _list_of(_is_point)),
    "notes": ("a list of texts", _list_of(lambda note: isinstance(note, str))),
    "extra": _MAPPING,
}
_NEEDED = ("family", "attack", "access", "seed", "split_hash", "n", "metrics", "roc", "notes")
_METRIC: Mapping[str, Check] = {
    "value": _NUMBER,
    "low": _NUMBER_OR_NULL,
    "high": _NUMBER_OR_NULL,
    "valid": _FLAG,
    "reason": _TEXT,
}
_PER_RECORD: Mapping[str, Check] = {
    **dict.fromkeys(("member_scores", "nonmember_scores"), _NUMBERS),
    **dict.fromkeys(("member_ids", "nonmember_ids"), _LIST),
}
_MEASUREMENT: Mapping[str, Check] = {
    **dict.fromkeys(("kind", "name", "reason"), _TEXT),
    **dict.fromkeys(("value", "low", "high"), _NUMBER_OR_NULL),
    **dict.fromkeys(("step", "epoch"), _COUNT),
    "valid": _FLAG,
}


def check_result(raw: Any) -> None:
    """Refuse what is no line of ``results.jsonl``.

    Args:
        raw: The line, read as JSON.

    Raises:
        ValueError: a field is missing, unknown, or of another type; the message names it.

    Example:
        >>> try:
        ...     check_result({"family": 3})
        ... except ValueError as wrong:
        ...     print(wrong)
        `family` is 3, which is not a text
    """
    _check(raw, _RESULT, _NEEDED, "", others=False)
    for name, metric in raw["metrics"].items():
        _check(metric, _METRIC, ("value",), f"metrics.{name}", others=False)
    _check(raw.get("extra", {}), _PER_RECORD, (), "extra", others=True)


def check_measurement(raw: Any) -> None:
    """Refuse what is no line of ``measurements.jsonl``.

    Args:
        raw: The line, read as JSON.

    Raises:
        ValueError: a field is missing or of another type; the message names it.
    """
    _check(raw, _MEASUREMENT, ("kind", "name", "value"), "", others=True)


def _check(raw: Any, kinds: Mapping[str, Check], needed: tuple[str, ...], where: str, others: bool) -> None:
    if not isinstance(raw, dict):
        raise ValueError(f"{f'`{where}`' if where else 'it'} is {_shown(raw)}, which is not a mapping")
    for name, value in raw.items():
        place = f"{where}.{name}" if where else name
        if name not in kinds:
            if others:
                continue
            raise ValueError(f"`{place}` is unknown")
        words, holds = kinds[name]
        if not holds(value):
            raise ValueError(f"`{place}` is {_shown(value)}, which is not {words}")
    lacking = [name for name in needed if name not in raw]
    if lacking:
        raise ValueError(f"`{f'{where}.' if where else ''}{lacking[0]}` is missing")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
