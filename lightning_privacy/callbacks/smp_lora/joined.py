"""Several batches as one, so that one forward pass serves them all."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_privacy.protocols import Draw

__all__ = ["batch_size", "joined_batch", "joined_draw"]


def joined_batch(batches: Sequence[Any]) -> Any | None:
    """Return the records of several batches as one batch, or None where the batches do not fit together.

    Batches are tensors, or mappings, lists or tuples of tensors and of lists of plain values, one entry a record.

    Example:
        >>> joined_batch([{"x": torch.zeros(2, 3), "name": ["a", "b"]}, {"x": torch.ones(1, 3), "name": ["c"]}])["name"]
        ['a', 'b', 'c']
        >>> joined_batch([torch.zeros(2, 3), torch.ones(1, 4)]) is None
        True
    """
    if any(len(set(_sizes(batch))) != 1 for batch in batches):
        return None
    return _join(batches)


def batch_size(batch: Any) -> int:
    """Return the number of records in a batch that `joined_batch` accepts."""
    return _sizes(batch)[0]


def joined_draw(draws: Sequence[Draw]) -> Draw | None:
    """Return the draws of several batches as one, or None where they do not fit together."""
    parts: list[Tensor | None] = []
    for values in ([draw.timesteps for draw in draws], [draw.noise for draw in draws]):
        present = [value for value in values if value is not None]
        part = _join(present) if present else None
        if len(present) not in (0, len(values)) or (present and part is None):
            return None
        parts.append(part)
    return Draw(*parts)


def _join(parts: Sequence[Any]) -> Any | None:
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        return None
    if isinstance(first, Tensor):
        alike = {(part.dtype, part.device, part.shape[1:]) for part in parts}
        return torch.cat(list(parts)) if len(alike) == 1 else None
    if isinstance(first, Mapping):
        if any(part.keys() != first.keys() for part in parts):
            return None
        joined = {key: _join([part[key] for part in parts]) for key in first}
        return None if any(value is None for value in joined.values()) else joined
    if _is_leaf(first):
        return [value for part in parts for value in part]
    if any(len(part) != len(first) for part in parts):
        return None
    items = [_join(column) for column in zip(*parts, strict=True)]
    if any(value is None for value in items):
        return None
    return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)


def _is_leaf(value: Any) -> bool:
    """Return whether a value is a list of plain values, one a record."""
    return isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value)


def _sizes(batch: Any) -> list[int]:
    """Return the number of records in each part of a batch; -1 for a part that has none."""
    if isinstance(batch, Tensor):
        return [len(batch) if batch.ndim else -1]
    if isinstance(batch, Mapping):
        return [size for value in batch.values() for size in _sizes(value)]
    if _is_leaf(batch):
        return [len(batch)]
    if isinstance(batch, list | tuple):
        return [size for value in batch for size in _sizes(value)]
    return [-1]
