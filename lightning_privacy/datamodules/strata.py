"""By what the roles are stratified: a label or caption of each item."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch

from lightning_privacy.datamodules.identity import item_digest
from lightning_privacy.datamodules.pool import innermost
from lightning_privacy.datamodules.random_scope import own_random_state
from lightning_privacy.errors import SplitError

__all__ = ["read_strata"]

AUTO_KEYS = ("label", "caption")


def _described(dataset: Any, index: int) -> Any:
    """Return the item, or what the dataset tells about it without decoding a picture (``metadata(index)``)."""
    base, place = innermost(dataset, index)
    return base.metadata(place) if callable(getattr(base, "metadata", None)) else dataset[index]


def _is_class(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 and not value.is_floating_point() and not value.is_complex()
    return isinstance(value, int | np.integer)


def _auto(item: Any) -> str | int | None:
    if isinstance(item, Mapping):
        return next((key for key in AUTO_KEYS if key in item), None)
    return len(item) - 1 if isinstance(item, list | tuple) and item and _is_class(item[-1]) else None


def read_strata(dataset: Any, stratify: str | int | None) -> tuple[list[Hashable], str | int | None]:
    """Return the stratum of every record.

    Args:
        dataset: The pool.
        stratify: Key or place in the item, ``"auto"``, or None for one stratum.

    Returns:
        Stratum of each record, and the key that was used.

    Raises:
        SplitError: An item has no such key or place.
    """
    indices = range(len(dataset))
    if stratify is None or not indices:
        return [0] * len(indices), None
    # A caption or label that is drawn at random would put a record anywhere; the same draw each time at least repeats.
    with own_random_state("strata"):
        key = _auto(_described(dataset, 0)) if stratify == "auto" else stratify
        if key is None:
            return [0] * len(indices), None
        strata: list[Hashable] = []
        for index in indices:
            item = _described(dataset, index)
            try:
                value = item[key]
            except (KeyError, IndexError, TypeError) as error:
                raise SplitError(
                    f"MembershipSplit stratifies by {key!r}, which record {index} of {type(dataset).__name__} does not "
                    "have. Pass `stratify` with a key of every item, or null."
                ) from error
            strata.append(value if isinstance(value, str | int) else item_digest(value))
    return strata, key
