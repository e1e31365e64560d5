"""Pictures and labels of a batch, whichever of the two usual shapes the loader gives it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["has_labels", "images_of", "labels_of", "targets_of", "with_images", "with_targets"]


def images_of(batch: Any) -> Tensor:
    """Return the pictures of ``{"image": ...}`` or of ``(pictures, labels, ...)``.

    Raises:
        InputError: the batch is neither.
    """
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), Tensor):
        return batch["image"]
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor):
        return batch[0]
    raise _unknown(batch, "pictures", '`batch["image"]`, or be first in the tuple')


def labels_of(batch: Any) -> Tensor:
    """Return the classes of ``{"label": ...}`` or of ``(pictures, labels, ...)``, as whole numbers.

    Raises:
        InputError: the batch is neither.
    """
    if not has_labels(batch):
        raise _unknown(batch, "labels", '`batch["label"]`, or be second in the tuple, one whole number a picture')
    return (batch["label"] if isinstance(batch, Mapping) else batch[1]).long()


def has_labels(batch: Any) -> bool:
    """Return whether `labels_of` finds classes in a batch."""
    found = batch.get("label") if isinstance(batch, Mapping) else None
    if isinstance(batch, list | tuple) and len(batch) > 1:
        found = batch[1]
    return isinstance(found, Tensor) and not found.is_floating_point() and found.ndim == 1


def targets_of(batch: Any) -> list[dict[str, Tensor]]:
    """Return the objects of each picture: ``batch["target"]``, or the second of ``(pictures, targets, ...)``.

    Raises:
        InputError: the batch has none.
    """
    found = batch.get("target") if isinstance(batch, Mapping) else None
    if isinstance(batch, list | tuple) and len(batch) > 1:
        found = batch[1]
    if isinstance(found, list | tuple) and all(isinstance(each, Mapping) and "boxes" in each for each in found):
        return [dict(each) for each in found]
    raise _unknown(
        batch, "targets", '`batch["target"]`, or be second in the tuple: one mapping a picture, with `boxes`'
    )


def with_targets(batch: Any, targets: list[dict[str, Tensor]]) -> Any:
    """Return the batch with other objects in its pictures, everything else as it was."""
    targets_of(batch)
    if isinstance(batch, Mapping):
        return {**batch, "target": targets}
    return type(batch)([batch[0], targets, *batch[2:]])


def with_images(batch: Any, images: Tensor) -> Any:
    """Return the batch with other pictures in it, everything else as it was."""
    images_of(batch)
    if isinstance(batch, Mapping):
        return {**batch, "image": images}
    return type(batch)([images, *batch[1:]])


def _unknown(batch: Any, what: str, where: str) -> InputError:
    kind = f"a mapping with {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    return InputError(f"The batch is {kind}, in which no {what} were found; they must be {where}.")
