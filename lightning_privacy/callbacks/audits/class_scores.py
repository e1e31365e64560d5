"""What a classifier says of a batch: class scores of the records and of augmented copies, and distances by label alone."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.membership.queries import query_views
from lightning_privacy.core.batches import images_of, with_images
from lightning_privacy.errors import InputError

__all__ = ["class_scores"]


def class_scores(module: Any, batch: Any, queries: int = 1) -> Float[Tensor, "batch queries classes"]:
    """Return a classifier's scores of each record and of its augmented copies, on the CPU.

    Args:
        module: Has ``logits(batch)``.
        batch: A batch on the module's device.
        queries: Views a record, the raw one first; see `query_views`. With one, the batch may have any shape.

    Raises:
        InputError: the scores are not one row a record and one column a class.
    """
    if queries == 1:
        return _rows(module, batch).unsqueeze(1)
    images = images_of(batch)
    return torch.stack([_rows(module, with_images(batch, view)) for view in query_views(images, queries)], dim=1)


def _rows(module: Any, batch: Any) -> Tensor:
    logits = module.logits(batch)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"`{type(module).__name__}.logits` returned {found}; attacks on classifiers need one row a record and one "
            "column a class (at least two classes), before the softmax."
        )
    return logits.float().cpu()
