"""Raw pictures and negatives of a batch that `LockedDataModule` made."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.model_lock.functional import mean_residual
from lightning_privacy.callbacks.model_lock.negatives import Negative
from lightning_privacy.core.batches import images_of
from lightning_privacy.errors import NoEffectError

__all__ = ["decoy_of", "raw_of", "sees_edits", "take_negatives"]

Pictures = Float[Tensor, "batch channels height width"]


def _pictures(batch: Any, name: str, place: int) -> Tensor | None:
    if isinstance(batch, Mapping):
        return batch.get(name)
    extra = [x for x in batch[2:] if isinstance(x, Tensor) and x.shape == batch[0].shape]
    return extra[place] if len(extra) > place else None


def raw_of(batch: Any) -> Pictures:
    """Return the pictures of a batch before their edit.

    Raises:
        NoEffectError: there are none.
    """
    found = _pictures(batch, "raw", 0)
    if found is None:
        raise NoEffectError(
            "This batch holds no raw pictures beside the edited ones, so that nothing can be locked. Keep `raw` of "
            "LockedDataModule in the batch: a `collate_fn` or transfer hook may have dropped it."
        )
    return found


def decoy_of(batch: Any) -> Pictures | None:
    """Return edits with wrong keys; None where the batch has none."""
    return _pictures(batch, "decoy", 1)


def sees_edits(batch: Any, who: str) -> None:
    """Refuse a batch that was not made by `LockedDataModule`.

    Raises:
        NoEffectError: it has no raw pictures, or of another shape.
    """
    if raw_of(batch).shape != images_of(batch).shape:
        raise NoEffectError(
            f"`{who}`: raw and edited pictures differ in shape. Let both pass through the same transfer hooks."
        )


def take_negatives(batch: Any, epoch: int, kinds: Sequence[Negative]) -> Pictures:
    """Return one picture without the key for every record: raw, edited with a wrong key, or with others' residue.

    Records take turns by number and epoch, so that one and two processes choose alike.

    Args:
        batch: With raw and edited pictures, decoys where they are asked for and, for the turns, record numbers.
        epoch: Of training.
        kinds: Whose turn comes, at least one.

    Raises:
        NoEffectError: it has no edits with wrong keys, which are asked for.
    """
    raw, decoy = raw_of(batch), decoy_of(batch)
    if "wrong_key" in kinds and decoy is None:
        raise NoEffectError("This batch holds no edits with wrong keys. Set `decoys: 1` or more of LockedDataModule.")
    records = batch.get("record") if isinstance(batch, Mapping) else None
    numbers = torch.arange(len(raw), device=raw.device) if records is None else records.to(raw.device)
    turn = ((numbers + epoch) % len(kinds)).view(-1, 1, 1, 1)
    made = raw
    for place, kind in enumerate(kinds):
        if kind == "wrong_key" and decoy is not None:
            made = torch.where(turn == place, decoy, made)
        elif kind == "residue":
            made = torch.where(turn == place, mean_residual(raw, images_of(batch)), made)
    return made
