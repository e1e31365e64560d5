"""What every run gets unless the user says otherwise: checkpoints, progress that suits the terminal, a stop at NaN."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar

from lightning_privacy.callbacks.reporting.non_finite import StopOnNonFinite
from lightning_privacy.callbacks.reporting.progress_lines import ProgressLines
from lightning_privacy.callbacks.reporting.run_files import RunFiles
from lightning_privacy.callbacks.reporting.starting_loss import StartingLoss
from lightning_privacy.callbacks.reporting.step_time import StepTime
from lightning_privacy.callbacks.reporting.wandb_charts import WandbCharts
from lightning_privacy.callbacks.reporting.wandb_run_id import PersistWandbId
from lightning_privacy.core.run_folder import RunFolder

__all__ = ["BestCheckpoint", "default_callbacks"]


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the lowest validation loss, and nothing where the module logs none.

    Args:
        dirpath: Folder of the checkpoints.
        monitor: Name under which the module logs its validation loss.
    """

    def __init__(self, dirpath: Path, monitor: str = "val/loss") -> None:
        super().__init__(
            dirpath=dirpath, filename="best-{epoch}", monitor=monitor, save_top_k=1, auto_insert_metric_name=False
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if the loss is there and the lowest so far."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if the loss is there and the lowest so far."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)


def default_callbacks(trainer: dict[str, Any], given: Sequence[Callback], run: RunFolder) -> list[Callback]:
    """Return the callbacks to add to those that were given; may switch off the progress bar in ``trainer``.

    Args:
        trainer: The trainer's arguments, changed in place where the log is no terminal.
        given: Callbacks from the configuration, defences and audits included.
        run: The run's folder.
    """
    added: list[Callback] = [StopOnNonFinite()]
    if not sys.stdout.isatty() and not any(isinstance(c, ProgressBar) for c in given):
        # a bar fills a log file with one line of control characters, or with nothing
        added.append(ProgressLines())
        if trainer.get("enable_progress_bar") is None:
            trainer["enable_progress_bar"] = False
    if trainer.get("fast_dev_run"):  # a rehearsal: nothing is kept
        return added
    added += [RunFiles(), StartingLoss(), StepTime(), WandbCharts(), PersistWandbId()]
    wants = trainer.get("enable_checkpointing") is not False
    if wants and not any(isinstance(c, ModelCheckpoint) for c in given):
        # One file, rewritten every epoch, that `ckpt_path: last` finds. Not by save_last: with save_top_k=0 Lightning
        # writes it only when training ends, otherwise it writes every checkpoint twice.
        # At the end of training epochs: Lightning's default waits for a validation that may not come.
        last = ModelCheckpoint(
            dirpath=run.checkpoints, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
        )
        added += [last, BestCheckpoint(run.checkpoints)]
    return [c for c in added if not any(type(c) is type(g) for g in given)]
