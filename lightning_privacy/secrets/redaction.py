"""Every tensor that a module holds, and copies of a module in which other tensors stand in their place."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Held", "held_values", "replaced_state"]

Held = Tensor | NDArray[Any]
"""What carries numbers: tensors and arrays."""


def held_values(module: nn.Module) -> Iterator[tuple[str, Held]]:
    """Yield each tensor and array of a module and its children once, with its name.

    Parameters and buffers come under their full name; tensors in plain attributes (a cached product, say), also inside
    lists, dictionaries and dataclasses, under an empty one. Modules that are no children are not entered: they are
    somebody else's.

    Args:
        module: The module.
    """
    seen: set[int] = set()
    named = (*module.named_parameters(), *module.named_buffers())
    for name, value in named:
        seen.add(id(value))
        yield name, value
    stack: list[Any] = [v for m in module.modules() for k, v in vars(m).items() if k != "_modules"]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        if isinstance(value, Tensor | np.ndarray):
            seen.add(id(value))
            yield "", value
        elif isinstance(value, Mapping | list | tuple | set | frozenset):
            seen.add(id(value))  # a list may hold itself
            stack.extend(value.values() if isinstance(value, Mapping) else value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            seen.add(id(value))
            stack.extend(getattr(value, field.name, None) for field in dataclasses.fields(value))


def replaced_state(module: nn.Module, instead: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    """Return what a copy of a module would hold in its ``__dict__``, with other values for every tensor.

    Args:
        module: The module; it stays as it is.
        instead: From a tensor's name (empty for plain attributes) and the tensor to the one that replaces it.

    Returns:
        A state for ``__setstate__``. What was one tensor under two names is one again.
    """
    memo: dict[int, Any] = {}
    for name, value in held_values(module):
        if isinstance(value, Tensor):
            new: Any = instead(name, value)
            memo[id(value)] = nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new
        else:
            memo[id(value)] = np.zeros_like(value)
    with torch.no_grad():
        return copy.deepcopy(vars(module), memo)
