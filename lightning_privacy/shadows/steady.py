"""Telling settings from what only moves: a setting is the same when it is made twice."""

from collections.abc import Mapping
from typing import Any

__all__ = ["MOVES", "blanked", "steady"]

MOVES = "<changes by itself>"


def steady(one: Any, other: Any) -> Any:
    """Return what two forms of the same thing have in common; `MOVES` stands for what differs.

    A counter, a time or the state of an unseeded generator would give every run a key of its own.

    Args:
        one: A plain value.
        other: Of the same thing, made or read once more.

    Example:
        >>> steady({"lr": 0.1, "made": [1, 7]}, {"lr": 0.1, "made": [1, 8]})
        {'lr': 0.1, 'made': [1, '<changes by itself>']}
    """
    if type(one) is type(other) and one == other:
        return one
    if isinstance(one, Mapping) and isinstance(other, Mapping) and set(one) == set(other):
        return {key: steady(one[key], other[key]) for key in one}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [steady(first, second) for first, second in zip(one, other, strict=True)]
    return MOVES


def blanked(form: Any, example: Any) -> Any:
    """Return a form with `MOVES` wherever an example of its kind has it.

    Args:
        form: A plain value.
        example: What `steady` returned for another of the kind.

    Example:
        >>> blanked({"lr": 0.2, "made": [2, 9]}, {"lr": 0.1, "made": [1, MOVES]})
        {'lr': 0.2, 'made': [2, '<changes by itself>']}
    """
    if example == MOVES:
        return MOVES
    if isinstance(form, Mapping) and isinstance(example, Mapping):
        return {key: blanked(part, example.get(key)) for key, part in form.items()}
    if isinstance(form, list) and isinstance(example, list) and len(form) == len(example):
        return [blanked(part, other) for part, other in zip(form, example, strict=True)]
    return form
