"""Everything that lies in an object: tensors, arrays, texts, bytes and lists of numbers, each with its place."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Leaf", "leaves"]

Leaf = Tensor | NDArray[Any] | str | bytes
"""What can be searched."""


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yield the searchable parts of an object with their places; nothing is called but ``state_dict``.

    Args:
        value: Containers, tensors, arrays, texts, modules and optimizers (by their state dict), other objects (by their
            attributes), nested in any way.
        place: Name of the object itself.

    Example:
        >>> [place for place, _ in leaves({"net": {"w": torch.ones(2)}, "hparams": [1, 2, 3]})]
        ['the key net', 'net.the key w', 'net.w', 'the key hparams', 'hparams']
    """
    yield from _walk(value, place, set())


def _walk(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Leaf]]:
    if value is None or isinstance(value, bool | int | float | complex | type):
        return
    if isinstance(value, str | bytes | Tensor | np.ndarray):
        yield place, value
        return
    if isinstance(value, bytearray | memoryview):
        yield place, bytes(value)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield _join(place, f"the key {key}"), key
            yield from _walk(inner, _join(place, str(key) if isinstance(key, str | int) else "?"), seen)
    elif isinstance(value, list | tuple | set | frozenset):
        if numbers := _numbers(value):
            yield place, np.array(numbers, np.float64)
        for i, inner in enumerate(value):
            yield from _walk(inner, _join(place, str(i)), seen)
    elif isinstance(value, nn.Module | torch.optim.Optimizer):
        yield from _walk(value.state_dict(), place, seen)
    elif hasattr(value, "__dict__"):
        yield from _walk(vars(value), place, seen)


def _numbers(value: Any) -> list[float]:
    """Return the numbers of a list, of lists in it too, or nothing where something else is among them."""
    out: list[float] = []
    for inner in value:
        if isinstance(inner, int | float):
            out.append(float(inner))
        elif isinstance(inner, list | tuple) and (deeper := _numbers(inner)):
            out += deeper
        else:
            return []
    return out


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
