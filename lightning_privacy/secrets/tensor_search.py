"""A secret in a tensor: equal up to its number type, or as rows that are multiples of it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_privacy.secrets.distinctness import window_length
from lightning_privacy.secrets.targets import TensorTarget

__all__ = ["TensorSearch", "correlated_rows"]

CORRELATION = 0.999
"""Momentum of a lock's weights has 0.9996 with the key under weight decay 5e-4, and 1 without."""
_SHORTEST = 12  # numbers, chosen here: eleven free directions correlate so highly by chance once in 10^13
_SPREAD = 0.05  # share of the largest numbers that are left out: two rows with one outlier in common correlate
_BLOCK = 4096  # rows at a time


def correlated_rows(rows: Tensor, secrets: Tensor) -> Tensor:
    """Return for each secret whether a row is a multiple of it up to an added constant: Pearson's r beyond 0.999 or -0.999.

    Args:
        rows: Of a tensor, one a line.
        secrets: Of the same length, one a line.

    Example:
        >>> key = torch.sin(torch.arange(20.0))
        >>> correlated_rows(torch.stack([torch.cos(torch.arange(20.0)), -3 * key]), key[None]).tolist()
        [True]
    """
    wanted, found = _standardised(secrets).float(), torch.zeros(len(secrets), dtype=torch.bool)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].double().nan_to_num(0, 0, 0)
        match = (_standardised(block).float() @ wanted.T).abs() > CORRELATION
        for i, j in match.nonzero().tolist():
            found[j] |= _without_outliers(block[i], secrets[j].double())
    return found


class TensorSearch:
    """Finds secret tensors in tensors.

    Args:
        targets: The secrets.
    """

    def __init__(self, targets: Sequence[TensorTarget]) -> None:
        self._whole = list(targets)
        self._rows: dict[int, list[tuple[str, str, Tensor]]] = {}
        for target in targets:
            for form, rows in _row_sets(target):
                self._rows.setdefault(rows.shape[1], []).append((target.name, form, rows))

    @property
    def widths(self) -> list[int]:
        """Lengths of the rows whose multiples are looked for."""
        return sorted(self._rows)

    def find(self, tensor: Tensor) -> list[tuple[str, str]]:
        """Return (secret, form) of what a tensor gives away.

        Args:
            tensor: Of any shape and number type.
        """
        if tensor.is_meta or tensor.is_complex() or tensor.numel() < 4:
            return []
        tensor = tensor.detach()
        tensor = (tensor.coalesce().values() if tensor.is_sparse else tensor).cpu()
        found = [(t.name, "equal") for t in self._whole if t.values.size == tensor.numel() and _equal(tensor, t)]
        equal = {name for name, _ in found}
        for axis, size in enumerate(tensor.shape):
            for name, form, rows in self._rows.get(size, ()):
                if name not in equal and correlated_rows(tensor.movedim(axis, -1).reshape(-1, size), rows).any():
                    found.append((name, form))
        for target in self._whole:  # the whole secret times a number, in whatever shape
            if target.values.size == tensor.numel() >= _SHORTEST and target.name not in {n for n, _ in found}:
                whole = torch.from_numpy(target.values)[None]
                if correlated_rows(tensor.reshape(1, -1), whole).any():
                    found.append((target.name, "proportional"))
        return list(dict.fromkeys(found))


def _row_sets(target: TensorTarget) -> list[tuple[str, Tensor]]:
    """Return the vectors whose multiples are looked for: the secret's rows, and the square of a vector (Adam's v)."""
    shape = target.shape or (1,)
    width = shape[-1] if shape[-1] >= _SHORTEST else target.values.size // shape[0]
    if width < _SHORTEST:
        return []
    rows = target.values.reshape(-1, width)
    sets = [("proportional rows", rows)]
    if len(rows) == 1:
        sets.append(("rows proportional to its square", rows**2))
    telling = [(form, [r for r in part if window_length(r) is not None and r.std() > 0]) for form, part in sets]
    return [(form, torch.from_numpy(np.stack(part))) for form, part in telling if part]


def _equal(tensor: Tensor, target: TensorTarget) -> bool:
    orders = [tensor.reshape(-1), *([tensor.t().reshape(-1)] if tensor.ndim == 2 else [])]
    values = torch.from_numpy(target.values)
    for order in orders:
        numbers = order.double()
        close = ((numbers - values).abs() <= values.abs() * 2**-8 + 1e-12).all()  # bfloat16 rounds by 2^-9 at most
        # gains close to 1 are close to any other gains: their differences must agree as well
        if close and (torch.equal(numbers, values) or _agree(numbers, values)):
            return True
    return False


def _agree(numbers: Tensor, values: Tensor) -> bool:
    return bool((_standardised(numbers[None]) * _standardised(values[None])).sum() > 0.99)


def _without_outliers(row: Tensor, secret: Tensor) -> bool:
    leave = max(1, int(_SPREAD * len(secret)))
    keep = (secret - secret.mean()).abs().argsort()[:-leave]
    return bool((_standardised(row[keep][None]) * _standardised(secret[keep][None])).sum().abs() > 0.99)


def _standardised(rows: Tensor) -> Tensor:
    """Return rows with mean 0 and norm 1; constant ones as zeros."""
    centred = rows.double() - rows.double().mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    telling = norm > 1e-9 * (rows.double().abs().amax(1, keepdim=True) + 1e-300) * rows.shape[1] ** 0.5
    return torch.where(telling, centred / norm.clamp_min(1e-300), torch.zeros_like(centred))
