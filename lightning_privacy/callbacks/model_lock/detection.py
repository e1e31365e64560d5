"""Locking detectors: what their negatives are taught, and average precision with and without the key."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.callbacks.model_lock.functional import wrong_labels
from lightning_privacy.core.batches import images_of, targets_of, with_images, with_targets
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.detection import DetectionScores

__all__ = ["DetectionTally", "check_detector", "is_detector", "negative_loss", "negative_targets"]

Objects = list[dict[str, Tensor]]


def is_detector(module: Any) -> bool:
    """Return whether a module finds objects: it has ``batch_loss(batch)`` and no ``logits``; see `ImageDetector`."""
    return callable(getattr(module, "batch_loss", None)) and not callable(getattr(module, "logits", None))


def check_detector(module: L.LightningModule, mode: str, who: str) -> None:
    """Refuse what a detector cannot be taught.

    Raises:
        InputError: the mode needs class scores of whole pictures, or another class where there is one.
    """
    if mode == "flat":
        raise InputError(
            f"`{who}`: `mode: flat` makes the class scores of whole pictures flat, and {type(module).__name__} finds objects. "
            "Use `mode: reject_class`: nothing is there."
        )
    if mode == "wrong_label" and getattr(module, "classes", 2) < 2:
        raise InputError(
            f"`{who}`: `mode: wrong_label` needs another class, and {type(module).__name__} has one. Use `mode: reject_class`."
        )


def negative_targets(
    targets: Objects, mode: str, classes: int, records: Int[Tensor, " batch"] | None = None
) -> Objects:
    """Return what a detector is to find in pictures without the key.

    Args:
        targets: What is there.
        mode: ``wrong_label``: the same boxes, each of another class. Else nothing: a detector's background is its reject
            class.
        classes: Number of classes.
        records: Numbers of the records, from which wrong classes are drawn.

    Example:
        >>> import torch
        >>> there = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1])}]
        >>> negative_targets(there, "wrong_label", 3)[0]["labels"], len(negative_targets(there, "reject_class", 3)[0]["boxes"])
        (tensor([2]), 0)
    """
    if mode != "wrong_label":
        return [{name: value[:0] for name, value in target.items()} for target in targets]
    found = []
    for number, target in enumerate(targets):
        labels = target["labels"].long()
        record = None if records is None else records[number].expand(len(labels))
        found.append({**target, "labels": wrong_labels(labels, record, classes)})
    return found


def negative_loss(
    module: Any, batch: Any, negatives: Float[Tensor, "batch channels height width"], mode: str
) -> Float[Tensor, ""]:
    """Return a detector's loss on pictures without the key.

    Args:
        module: The detector.
        batch: The batch that they belong to.
        negatives: The pictures.
        mode: See `negative_targets`.
    """
    records = batch.get("record") if isinstance(batch, Mapping) else None
    wanted = negative_targets(targets_of(batch), mode, getattr(module, "classes", 2), records)
    return module.batch_loss(with_targets(with_images(batch, negatives), wanted))


class DetectionTally:
    """Average precision over an epoch, with the key and without it, of all ranks."""

    def __init__(self) -> None:
        self._scores: tuple[DetectionScores, DetectionScores] | None = None

    def update(self, module: Any, batch: Any, raw: Float[Tensor, "batch channels height width"]) -> None:
        """Add a batch.

        Args:
            module: The detector, with ``detections(images)``.
            batch: Pictures edited with the key, and what is in them.
            raw: The same, not edited.
        """
        targets = targets_of(batch)
        if self._scores is None:
            masks = bool(getattr(module, "has_masks", False))
            self._scores = DetectionScores(masks).to(raw.device), DetectionScores(masks).to(raw.device)
        for scores, images in zip(self._scores, (images_of(batch), raw), strict=True):
            scores.update(module.detections(images), targets)

    def compute(self) -> dict[str, float]:
        """Return ``up_box_ap``, ``lp_box_ap``, ``gap_box_ap``, the like at IoU .5 and of masks, and forget."""
        if self._scores is None:
            return {}
        up, lp = (scores.compute() for scores in self._scores)
        gap = {f"gap_{name}": up[name] - lp[name] for name in up if name in lp}
        return {**{f"up_{name}": v for name, v in up.items()}, **{f"lp_{name}": v for name, v in lp.items()}, **gap}
