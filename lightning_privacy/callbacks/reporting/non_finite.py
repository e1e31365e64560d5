"""Stops a run whose loss is no longer a number, before it damages the weights."""

from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_privacy.errors import NonFiniteLossError

__all__ = ["StopOnNonFinite"]


class StopOnNonFinite(L.Callback):
    """Raises at the first loss that is NaN or infinite, on every rank together, before backward.

    The weights are still those of the step before, and checkpoints on disk are from before as well.

    Raises:
        NonFiniteLossError: names the step and the last checkpoint.
    """

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        finite = bool(torch.isfinite(loss.detach()).all())
        # one rank alone would leave the others waiting in their next collective
        if trainer.strategy.reduce_boolean_decision(finite, all=True):
            return
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch})"
        here = f"is {float(loss.detach().sum())}" if not finite else "is not finite on another rank"
        raise NonFiniteLossError(
            f"The training loss of {type(pl_module).__name__} {here} at {where}; training stopped before the weights "
            f"were touched. Last good checkpoint: {last_checkpoint(trainer) or 'none was written yet'}. Lower the "
            "learning rate or the defence's strength, or use bf16-mixed instead of 16-mixed."
        )


def last_checkpoint(trainer: L.Trainer) -> str:
    """Return the path of the newest checkpoint written by this trainer, or an empty string."""
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    paths = [Path(p) for c in callbacks for p in (c.last_model_path, c.best_model_path) if p]
    written = [p for p in paths if p.exists()]
    return str(max(written, key=lambda p: (p.stem == "last", p.stat().st_mtime))) if written else ""
