"""Average precision of detections, of boxes and of masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_privacy.errors import InputError

__all__ = ["DetectionScores"]

Objects = Sequence[Mapping[str, Tensor]]


class DetectionScores(nn.Module):
    """COCO's average precision, by torchmetrics, over all that was added since the last `compute`.

    Args:
        masks: Whether masks are scored beside boxes.
        sync: Whether `compute` is over all ranks, which must then all call it.

    Raises:
        InputError: pycocotools is not installed.
    """

    def __init__(self, masks: bool = False, sync: bool = True) -> None:
        super().__init__()
        from torchmetrics.detection import MeanAveragePrecision

        self.masks = masks
        try:
            self.precision = MeanAveragePrecision(iou_type=("bbox", "segm") if masks else "bbox", sync_on_compute=sync)
        except ModuleNotFoundError as absent:
            raise InputError(
                "Average precision needs pycocotools: pip install 'lightning-privacy[detection]'."
            ) from absent
        self.pictures = 0

    def update(self, found: Objects, targets: Objects) -> None:
        """Add pictures.

        Args:
            found: What was detected in each: ``boxes`` (n, 4) as x1, y1, x2, y2 in pixels, ``labels``, ``scores`` and, with
                masks, ``masks`` (n, height, width).
            targets: What is there, without ``scores``.
        """
        keys = ("boxes", "labels", "scores", *(["masks"] if self.masks else []))
        given, there = (
            [{k: _plain(k, v) for k, v in each.items() if k in keys} for each in all_] for all_ in (found, targets)
        )
        self.precision.update(given, there)
        self.pictures += len(there)

    def compute(self) -> dict[str, float]:
        """Return ``box_ap`` (mean over IoU .5 to .95), ``box_ap50``, and ``mask_ap``, ``mask_ap50``, over all ranks; forget.

        Empty where nothing was added; a value is absent where no object was there.
        """
        if not self.pictures:
            return {}
        found: dict[str, Any] = self.precision.compute()
        self.precision.reset()
        self.pictures = 0
        names = {"box": "bbox_" if self.masks else "", **({"mask": "segm_"} if self.masks else {})}
        values = {
            f"{kind}_{short}": float(found[f"{prefix}{long}"])
            for kind, prefix in names.items()
            for short, long in (("ap", "map"), ("ap50", "map_50"))
        }
        return {name: value for name, value in values.items() if value >= 0}


def _plain(name: str, value: Tensor) -> Tensor:
    value = value.detach()
    return value.bool() if name == "masks" else value.float() if name in ("boxes", "scores") else value.to(torch.long)
