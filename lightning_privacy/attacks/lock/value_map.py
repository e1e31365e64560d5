"""Keyed orders and other linear edits, solved from pictures seen raw and edited."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.lock.target import Cost, LockedModel, OwnPictures, Unlocked, accuracy_of
from lightning_privacy.editors.blocks import from_blocks, to_blocks
from lightning_privacy.errors import InputError

__all__ = ["BlockMap", "ValueOrder", "linear_rows", "ordered_rows"]

Rows = Float[Tensor, "rows values"]
Change = Callable[[Rows], Rows]
_BLOCKS = (2, 4, 8, 16, 32, 64)  # sides that are tried where they divide the pictures', chosen here
_LARGEST = 2**14  # values of a block beyond which it is not tried: their square is computed
_ROWS = 4096  # blocks to learn from


def ordered_rows(raw: Rows, edited: Rows) -> Change:
    """Return a change that gives every place the value of another place, or its negative, as a few examples suggest.

    Each place takes the one whose values, or their negatives ``1 - x``, are nearest over all examples.

    Args:
        raw: Examples, one a row, in [0, 1].
        edited: The same, edited.

    Example:
        >>> x = torch.rand(9, 4)
        >>> edit = lambda r: torch.stack([r[:, 2], 1 - r[:, 0], r[:, 3], r[:, 1]], 1)
        >>> torch.allclose(ordered_rows(x, edit(x))(x), edit(x))
        True
    """
    both = torch.cat([raw - 0.5, 0.5 - raw], 1)
    lengths = both.square().sum(0)
    nearest = torch.cat([(lengths - 2 * (part.T @ both)).argmin(1) for part in (edited - 0.5).split(1024, dim=1)])
    places = raw.shape[1]
    return lambda rows: torch.where(nearest < places, rows[:, nearest % places], 1 - rows[:, nearest % places])


def linear_rows(raw: Rows, edited: Rows, ridge: float) -> Change:
    """Return the affine map of rows that a ridge regression finds.

    Args:
        raw: Examples, one a row.
        edited: The same, edited.
        ridge: Weight of the squared coefficients, as a share of the examples' mean squared length.

    Example:
        >>> x, w = torch.rand(40, 3), torch.rand(3, 3)
        >>> torch.allclose(linear_rows(x, x @ w, 1e-6)(x), x @ w, atol=1e-3)
        True
    """
    middle, level = raw.mean(0), edited.mean(0)
    x, y = raw - middle, edited - level
    weight = ridge * float(x.square().sum(1).mean().clamp_min(1e-12))
    if len(x) < x.shape[1]:
        gram = x @ x.T
        gram.diagonal().add_(weight)
        dual = torch.linalg.solve(gram, y)
        return lambda rows: level + (rows - middle) @ x.T @ dual
    gram = x.T @ x
    gram.diagonal().add_(weight)
    slope = torch.linalg.solve(gram, x.T @ y)
    return lambda rows: level + (rows - middle) @ slope


def _unlock(
    model: LockedModel, own: OwnPictures, learners: dict[str, Callable[[Rows, Rows], Change]], blocks: Sequence[int]
) -> Unlocked:
    if own.edited is None:
        raise InputError("An edit learned from pairs needs pairs, and the attacker has none.")
    channels, height, width = own.images.shape[1:]
    sides = [b for b in blocks if height % b == 0 and width % b == 0 and channels * b * b <= _LARGEST]
    if not sides:
        raise InputError(f"None of the blocks {list(blocks)} divides pictures of {height} by {width} pixels.")
    tried: dict[tuple[int, str], tuple[float, float]] = {}
    edits: dict[tuple[int, str], Callable[[Tensor], Tensor]] = {}
    for side in sides:
        raw, edited = (to_blocks(x, side).flatten(0, 1) for x in (own.images, own.edited))
        raw, edited = (x[:: -(-len(x) // _ROWS)] for x in (raw, edited))
        for name, learn in learners.items():
            change = learn(raw, edited)

            def edit(x: Tensor, side: int = side, change: Callable[[Rows], Rows] = change) -> Tensor:
                rows = to_blocks(x, side)
                changed = change(rows.flatten(0, 1)).view_as(rows).clamp(0, 1)
                return from_blocks(changed, (x.shape[-2], x.shape[-1]), side)

            reached = accuracy_of(lambda x, edit=edit: model.scores(edit(x)), own.val_images, own.val_labels)
            tried[side, name] = reached, -float((change(raw) - edited).square().mean())
            edits[side, name] = edit
    best = max(tried, key=lambda each: tried[each])
    cost = Cost(pairs=len(own.images), queries=len(tried) * len(own.val_images))
    solved = edits[best]
    chosen = f"blocks of {best[0]}{best[1]}"
    return Unlocked(lambda x: model.scores(solved(x)), tried[best][0], cost, chosen, edit=solved)


@dataclass(frozen=True)
class ValueOrder:
    """Finds out from pairs which value, or negative of a value, an edit puts where; exact for keyed orders and negatives.

    Args:
        blocks: Sides of the blocks that are tried; the attacker's own pictures choose.
    """

    name: ClassVar[str] = "value_order"
    access: ClassVar[str] = "queries and a few pairs of raw and edited pictures"
    blocks: Sequence[int] = _BLOCKS

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the order that was found; see `LockAttack`.

        Raises:
            InputError: there are no pairs, or no block divides the pictures.
        """
        return _unlock(model, own, {"": ordered_rows}, self.blocks)


@dataclass(frozen=True)
class BlockMap:
    """Learns from pairs one linear map for all blocks of a picture, by ridge regression.

    Args:
        blocks: Sides of the blocks that are tried.
        ridges: Candidates for the weight of the squared coefficients; the attacker's own pictures choose both.
    """

    name: ClassVar[str] = "block_map"
    access: ClassVar[str] = "queries and a few pairs of raw and edited pictures"
    blocks: Sequence[int] = _BLOCKS
    ridges: Sequence[float] = (1e-3, 1e-1)

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the learned map; see `LockAttack`.

        Raises:
            InputError: there are no pairs, or no block divides the pictures.
        """
        learners = {f", ridge {r:g}": lambda x, y, r=r: linear_rows(x, y, r) for r in self.ridges}
        return _unlock(model, own, learners, self.blocks)
