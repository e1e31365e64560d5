"""The mathematics of pruned gradients, as pure functions (arXiv 1906.08935, section on defences).

| symbol | here | meaning |
|---|---|---|
| ``g`` | ``gradients`` | what would be shared, a tensor a parameter |
| ``p`` | ``share`` | share of the entries that are set to zero, those of smallest absolute value |
"""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Scope", "energy_kept", "kept_count", "largest", "prune"]

Scope = Literal["tensor", "global"]
_ROUNDING = 1e-9  # .29 * 100 is 28.999999999999996


def kept_count(numbers: int, share: float | int) -> int:
    """Return how many of ``n`` numbers survive: ``n - floor(p n)``, at least one.

    Args:
        numbers: n, at least 1.
        share: p, from 0 to below 1.

    Example:
        >>> kept_count(100, 0.29), kept_count(1, 0.9)
        (71, 1)
    """
    return max(1, numbers - math.floor(share * numbers + _ROUNDING))


def largest(magnitudes: Float[Tensor, " n"], kept: int) -> Bool[Tensor, " n"]:
    """Return where the largest numbers stand; among equal ones the first, so that every rank keeps the same.

    Args:
        magnitudes: Absolute values.
        kept: How many, from 1 to n.

    Returns:
        True for exactly ``kept`` numbers, and for any that are not finite: a diverged run must not look healthy.

    Example:
        >>> largest(torch.tensor([2.0, 1.0, 2.0, 2.0]), 2).tolist()
        [True, False, True, False]
    """
    # The smallest value that is kept is the same on every device; which of several equal entries topk returns is not.
    threshold = magnitudes.topk(kept, sorted=False).values.min()
    above, level = magnitudes > threshold, magnitudes == threshold
    first = level & (level.long().cumsum(0) <= kept - above.sum())
    return above | first | ~magnitudes.isfinite()


def prune(gradients: Mapping[str, Tensor], share: float | int, scope: Scope = "tensor") -> dict[str, Tensor]:
    """Return gradients whose smallest entries are zero.

    Args:
        gradients: g, by parameter name; a weight difference is pruned alike.
        share: p, from 0 to below 1.
        scope: ``tensor`` prunes the share of each tensor, so that each keeps at least one entry; ``global`` that of all
            entries together, where tensors with small gradients may become zero altogether.

    Returns:
        New tensors of the same types; the survivors bit for bit.

    Example:
        >>> g = {"w": torch.tensor([1.0, -4.0]), "b": torch.tensor([0.1, 0.2])}
        >>> {k: v.tolist() for k, v in prune(g, 0.5).items()}
        {'w': [0.0, -4.0], 'b': [0.0, 0.20000000298023224]}
        >>> {k: v.tolist() for k, v in prune(g, 0.5, "global").items()}
        {'w': [1.0, -4.0], 'b': [0.0, 0.0]}

    Source:
        Zhu, Liu and Han, arXiv 1906.08935, section on defences (gradients of small magnitude are pruned to zero).
    """
    full = {name: g for name, g in gradients.items() if g.numel()}
    sizes = [g.numel() for g in full.values()]
    if scope == "tensor":
        masks = [largest(_magnitudes(g), kept_count(g.numel(), share)) for g in full.values()]
    else:
        wide = reduce(torch.promote_types, (g.dtype for g in full.values()), torch.float32)
        place = next(iter(full.values())).device if full else torch.device("cpu")
        every = [_magnitudes(g).to(place, wide) for g in full.values()]
        masks = list(largest(torch.cat(every), kept_count(sum(sizes), share)).split(sizes)) if every else []
    kept = {name: mask.view(g.shape).to(g.device) for (name, g), mask in zip(full.items(), masks, strict=True)}
    zero = {name: torch.zeros((), dtype=g.dtype, device=g.device) for name, g in gradients.items()}
    return {n: torch.where(kept[n], g, zero[n]) if n in kept else g.clone() for n, g in gradients.items()}


def energy_kept(gradients: Mapping[str, Tensor], pruned: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Return the share of the squared length that survives, from 0 to 1; 1 for a zero gradient.

    Args:
        gradients: Before pruning; not empty.
        pruned: After it.

    Example:
        >>> round(energy_kept({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 4.0])}).item(), 2)
        0.64
    """
    before, after = (torch.stack([v.float().square().sum() for v in g.values()]).sum() for g in (gradients, pruned))
    return torch.where(before > 0, after / before, torch.ones_like(before))


def _magnitudes(gradient: Tensor) -> Float[Tensor, " n"]:
    return gradient.detach().abs().flatten()
