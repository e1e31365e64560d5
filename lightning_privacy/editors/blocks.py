"""Keyed block-wise transforms (arXiv 2008.02450, 2105.14756): cheap, exact on every machine, and easily imitated."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_privacy.editors.blending import Grid
from lightning_privacy.editors.editor import Editor
from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_ref import SecretRef

__all__ = ["NegativePositiveEditor", "PixelShuffleEditor", "from_blocks", "to_blocks"]

Pictures = Float[Tensor, "batch channels height width"]


def to_blocks(images: Pictures, block: int) -> Float[Tensor, "batch blocks values"]:
    """Cut pictures into square blocks, each a row of its channels, rows and columns.

    Args:
        images: Sides must be multiples of ``block``.
        block: Side of a block.

    Raises:
        InputError: they are not.
    """
    height, width = images.shape[-2:]
    if height % block or width % block:
        raise InputError(
            f"Pictures of {height} by {width} pixels do not divide into blocks of {block}; choose a `block` that divides both."
        )
    return F.unfold(images, block, stride=block).transpose(1, 2)


def from_blocks(rows: Float[Tensor, "batch blocks values"], size: tuple[int, int], block: int) -> Pictures:
    """Undo `to_blocks`.

    Args:
        rows: What it returned.
        size: Height and width of the pictures.
        block: Side of a block.

    Example:
        >>> x = torch.rand(2, 3, 8, 4)
        >>> torch.equal(from_blocks(to_blocks(x, 4), (8, 4), 4), x)
        True
    """
    return F.fold(rows.transpose(1, 2), size, block, stride=block)


class _BlockEditor(Editor):
    """What the block-wise editors share."""

    def __init__(
        self,
        key: SecretRef | str | None = None,
        create: bool = False,
        block: int = 4,
        alpha: float | int = 1.0,
        grid: Grid = "round",
    ) -> None:
        if block < 1:
            raise InputError(f"{type(self).__name__}: `block` is {block}; a block has at least one pixel a side.")
        super().__init__(key, create, alpha, grid)
        self.block = block

    def settings(self) -> dict[str, Any]:
        """Return the block's side."""
        return {"block": self.block}

    def change(
        self, rows: Float[Tensor, "batch blocks values"], order: Shaped[Tensor, " values"]
    ) -> Float[Tensor, "batch blocks values"]:
        """Change the values of every block by keyed numbers, one a value."""
        raise NotImplementedError

    def apply(self, images: Pictures, secret: LockSecret) -> Pictures:
        """Return the pictures with the same change in every block."""
        rows = to_blocks(images, self.block)
        numbers = secret.numbers(self.name, rows.shape[-1]).to(images.device)
        return from_blocks(self.change(rows, numbers), (images.shape[-2], images.shape[-1]), self.block)


class PixelShuffleEditor(_BlockEditor):
    """Shuffle the values of every block of pixels, channels included, by one keyed order (arXiv 2008.02450).

    Deterministic and the same on every device. A baseline: what is coarser than a block stays to be seen.

    Args:
        key: ``vault:PATH#NAME`` of a master key, or ``env:NAME``.
        create: Make vault and entry where they are absent, when a run begins.
        block: Side of a block in pixels; it must divide the pictures' sides.
        alpha: Share of the shuffled picture, above 0 to 1.
        grid: ``none``, ``round`` or ``truncate``: whether results are multiples of 1/255.

    Example:
        >>> editor = PixelShuffleEditor.with_secret(LockSecret(seed=b"an example only!"), block=2)
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4) / 255
        >>> (editor.edit(x)[0, 0, :2, :2].flatten() * 255).round().int().sort().values.tolist()
        [0, 1, 4, 5]
    """

    name: ClassVar[str] = "pixel_shuffle"

    def change(
        self, rows: Float[Tensor, "batch blocks values"], order: Shaped[Tensor, " values"]
    ) -> Float[Tensor, "batch blocks values"]:
        """Return the values in keyed order."""
        return rows[..., order.argsort(stable=True)]


class NegativePositiveEditor(_BlockEditor):
    """Turn a keyed half of each block's values into their negatives (arXiv 2008.02450).

    Deterministic and the same on every device; edges and shapes stay to be seen.

    Args:
        key: ``vault:PATH#NAME`` of a master key, or ``env:NAME``.
        create: Make vault and entry where they are absent, when a run begins.
        block: Side of a block in pixels; it must divide the pictures' sides.
        alpha: Share of the changed picture, above 0 to 1; at 1/2 every changed value would be grey.
        grid: ``none``, ``round`` or ``truncate``: whether results are multiples of 1/255.

    Example:
        >>> editor = NegativePositiveEditor.with_secret(LockSecret(seed=b"an example only!"), block=4)
        >>> (editor.edit(torch.zeros(1, 1, 4, 4)) == 1).sum().item()
        8
    """

    name: ClassVar[str] = "negative_positive"

    def change(
        self, rows: Float[Tensor, "batch blocks values"], order: Shaped[Tensor, " values"]
    ) -> Float[Tensor, "batch blocks values"]:
        """Return the values, half of them as ``1 - x``."""
        negative = order.argsort(stable=True).argsort(stable=True) < len(order) // 2
        return torch.where(negative, 1 - rows, rows)
