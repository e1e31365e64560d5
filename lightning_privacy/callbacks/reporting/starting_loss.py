"""Keeps the held-out loss before the first step, against which every gain is measured."""

import lightning.pytorch as L

from lightning_privacy.core.run_folder import RunFolder

__all__ = ["StartingLoss"]


class StartingLoss(L.Callback):
    """Appends ``val/loss`` of the untrained model to the run's measurements, as the utility at step 0.

    It reads Lightning's sanity check, so that nothing is computed twice: set ``num_sanity_val_steps: -1`` (the whole
    validation set); a shorter check is not representative and is left out.
    """

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the loss, on rank zero, where the check covered all of the validation data and nothing was resumed."""
        loss = trainer.callback_metrics.get("val/loss")
        whole = trainer.num_sanity_val_steps == float("inf")
        if loss is None or not whole or not trainer.is_global_zero or trainer.global_step:
            return
        RunFolder(trainer.default_root_dir).append_measurement(
            {"kind": "utility", "name": "val_loss", "value": loss.item(), "step": 0, "epoch": 0}
        )
