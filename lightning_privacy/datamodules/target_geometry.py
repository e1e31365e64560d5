"""Moving a picture's boxes and masks with it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["has_boxes", "mirror_target"]


def has_boxes(item: Any) -> bool:
    """Return whether a record holds objects with boxes: ``item["target"]``, or the second of a tuple."""
    found = item.get("target") if isinstance(item, Mapping) else item[1] if len(item) > 1 else None
    return isinstance(found, Mapping) and "boxes" in found


def mirror_target(target: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return the objects of a picture that was mirrored left to right.

    Args:
        target: ``boxes`` (n, 4) as x1, y1, x2, y2 in pixels, and ``masks`` (n, height, width) where there are any.
        width: Of the picture in pixels.

    Example:
        >>> import torch
        >>> mirror_target({"boxes": torch.tensor([[1.0, 2.0, 4.0, 5.0]])}, width=10)["boxes"].tolist()
        [[6.0, 2.0, 9.0, 5.0]]
    """
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = width - target["boxes"][:, [2, 0]]
    masks = {"masks": target["masks"].flip(-1)} if "masks" in target else {}
    return {**target, "boxes": boxes, **masks}
