"""Keyed changes of colour and a keyed object: stand-ins for a style and for an object, without a model."""

from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.editors.blending import Grid
from lightning_privacy.editors.editor import Editor
from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.errors import InputError
from lightning_privacy.secrets.secret_ref import SecretRef

__all__ = ["OverlayEditor", "ToneCurveEditor"]

Pictures = Float[Tensor, "batch channels height width"]
_UNIT = float(2**63)


class ToneCurveEditor(Editor):
    """Send the values of each channel through a keyed curve.

    Deterministic and the same on every device up to rounding. A baseline: a curve can be fitted from a few pairs.

    Args:
        key: ``vault:PATH#NAME`` of a master key, or ``env:NAME``.
        create: Make vault and entry where they are absent, when a run begins.
        points: Points of a curve, at least 2, between which it is straight.
        monotone: Whether the curves rise, so that pictures keep their order of brightness.
        alpha: Share of the changed picture, above 0 to 1.
        grid: ``none``, ``round`` or ``truncate``: whether results are multiples of 1/255.

    Example:
        >>> import torch
        >>> editor = ToneCurveEditor.with_secret(LockSecret(seed=b"an example only!"), monotone=True)
        >>> x = torch.linspace(0, 1, 9).reshape(1, 1, 3, 3)
        >>> bool((editor.edit(x).flatten().diff() >= 0).all())
        True
    """

    name: ClassVar[str] = "tone_curve"

    def __init__(
        self,
        key: SecretRef | str | None = None,
        create: bool = False,
        points: int = 8,
        monotone: bool = False,
        alpha: float | int = 1.0,
        grid: Grid = "round",
    ) -> None:
        if points < 2:
            raise InputError(f"ToneCurveEditor: `points` is {points}; a curve has at least 2.")
        super().__init__(key, create, alpha, grid)
        self.points, self.monotone = points, monotone

    def settings(self) -> dict[str, Any]:
        """Return the shape of the curves."""
        return {"points": self.points, "monotone": self.monotone}

    def apply(self, images: Pictures, secret: LockSecret) -> Pictures:
        """Return the pictures with the values of the curves."""
        channels = images.shape[1]
        heights = secret.numbers(self.name, channels * self.points).double().div(_UNIT).reshape(channels, self.points)
        heights = (heights.sort(1).values if self.monotone else heights).float().to(images.device)
        place = images * (self.points - 1)
        left = place.floor().clamp(max=self.points - 2).long()
        curve = heights[None, :, :, None].expand(len(images), -1, -1, 1).flatten(2)
        low, high = (curve.gather(2, (left + k).flatten(2)).reshape(images.shape) for k in (0, 1))
        return low + (place - left) * (high - low)


class OverlayEditor(Editor):
    """Lay a keyed patch of coarse texture over a keyed place at the border: an object in the background.

    Deterministic and the same on every device up to rounding. A baseline: whoever sees two edited pictures can cut the
    object out of them.

    Args:
        key: ``vault:PATH#NAME`` of a master key, or ``env:NAME``.
        create: Make vault and entry where they are absent, when a run begins.
        size: Side of the object, as a share of the picture's, above 0 to 1.
        cells: Cells of its texture along a side, at least 1.
        alpha: How opaque it is, above 0 to 1.
        grid: ``none``, ``round`` or ``truncate``: whether results are multiples of 1/255.

    Example:
        >>> import torch
        >>> editor = OverlayEditor.with_secret(LockSecret(seed=b"an example only!"), size=0.5)
        >>> (editor.edit(torch.zeros(1, 3, 8, 8)).amax(1) > 0).sum().item()
        16
    """

    name: ClassVar[str] = "overlay"

    def __init__(
        self,
        key: SecretRef | str | None = None,
        create: bool = False,
        size: float | int = 0.25,
        cells: int = 4,
        alpha: float | int = 1.0,
        grid: Grid = "round",
    ) -> None:
        if not 0 < size <= 1 or cells < 1:
            raise InputError(
                f"OverlayEditor: `size` is {size} and `cells` {cells}; a share above 0 to 1, and at least 1."
            )
        super().__init__(key, create, alpha, grid)
        self.size, self.cells = size, cells

    def settings(self) -> dict[str, Any]:
        """Return the object's size."""
        return {"size": float(self.size), "cells": self.cells}

    def apply(self, images: Pictures, secret: LockSecret) -> Pictures:
        """Return the pictures with the object."""
        channels, height, width = images.shape[1:]
        rows, columns = max(1, round(height * self.size)), max(1, round(width * self.size))
        texture = secret.numbers(f"{self.name} texture", channels * self.cells**2).double().div(_UNIT).float()
        shape = 1, channels, self.cells, self.cells
        patch = F.interpolate(texture.reshape(shape), (rows, columns), mode="nearest").to(images)
        side, along = secret.numbers(f"{self.name} place", 2).tolist()
        free = height - rows, width - columns
        top, left = (
            ((0, free[0])[side % 2], along % (free[1] + 1))
            if side % 4 < 2
            else (along % (free[0] + 1), (0, free[1])[side % 2])
        )
        edited = images.clone()
        edited[:, :, top : top + rows, left : left + columns] = patch
        return edited
