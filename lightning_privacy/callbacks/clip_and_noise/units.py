"""What is clipped in a run: each record's gradient, or that of the batch."""

from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as L
import torch

from lightning_privacy.core.defence import Defence, Slot, require
from lightning_privacy.core.ranks import gather_rows
from lightning_privacy.core.stack import environment_of
from lightning_privacy.errors import DefenceConflictError
from lightning_privacy.properties import Property

__all__ = ["Unit", "choose_unit", "smallest_batch"]

Unit = Literal["auto", "record", "batch"]

_SNIPPET = """    def per_sample_loss(self, batch, draw=None):
        return F.cross_entropy(self(batch[0]), batch[1], reduction="none")
or set `unit: batch`."""


def choose_unit(
    asked: Unit, trainer: L.Trainer, module: L.LightningModule, defence: Defence
) -> tuple[Literal["record", "batch"], str]:
    """Return what is clipped, and why.

    Args:
        asked: What the user asked for.
        trainer: Whose other defences may change the loss.
        module: Whose ``per_sample_loss`` is asked for.
        defence: Who clips.

    Raises:
        MissingProtocolError: records are to be clipped, and the module has no ``per_sample_loss``.
        DefenceConflictError: records are to be clipped, and another defence changes the loss.
    """
    if asked == "batch":
        return "batch", "`unit: batch` asks for it"
    # Losses of single records come from the module and know nothing of what a defence has added.
    callbacks: list[L.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    others = [c.name for c in callbacks if isinstance(c, Defence) and c is not defence and Slot.OBJECTIVE in c.slots]
    if asked == "record":
        require(module, "per_sample_loss", defence.name, _SNIPPET)
        if others:
            raise DefenceConflictError(
                f"`{defence.name}` with `unit: record` trains on the module's own losses and would drop what "
                f"`{others[0]}` adds to them. Set `unit: batch`, or use only one of the two."
            )
        return "record", "`unit: record` asks for it"
    if not callable(getattr(module, "per_sample_loss", None)):
        return "batch", f"{type(module).__name__} has no `per_sample_loss`"
    if others:
        return "batch", f"`{others[0]}` changes the loss"
    mixing = environment_of(trainer, module).module_breaks.get(Property.NO_CROSS_SAMPLE_LAYERS)
    if mixing is not None:
        return "batch", f"{mixing} mixes records"
    return "record", f"{type(module).__name__} has `per_sample_loss`"


def smallest_batch(records: Sequence[int], trainer: L.Trainer, device: torch.device) -> int:
    """Return one over the largest weight that a record has in an optimizer step.

    Lightning averages over accumulated steps and ranks as if all batches were equally large.

    Args:
        records: Batch sizes of this rank since the last optimizer step; not empty.
        trainer: How many steps it accumulates on how many ranks.
        device: Where ranks communicate.
    """
    sizes = gather_rows(torch.tensor([[float(min(records))]], device=device))
    return int(sizes.min()) * trainer.accumulate_grad_batches * trainer.world_size
