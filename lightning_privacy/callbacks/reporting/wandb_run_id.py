"""Keeps the W&B run's id in the run's folder, so that a requeued job continues one chart."""

import lightning.pytorch as L
from lightning.pytorch.loggers import WandbLogger

from lightning_privacy.core.run_folder import RunFolder, write_atomically

__all__ = ["PersistWandbId"]


class PersistWandbId(L.Callback):
    """Writes ``<run>/wandb_id`` when training starts; the command line reads it before it builds the logger."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the id, on rank zero, if a W&B logger is there."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and logger.version:
                write_atomically(RunFolder(trainer.default_root_dir).wandb_id, str(logger.version))
