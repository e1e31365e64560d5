"""Measures what training costs."""

import time
from statistics import median
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_privacy.core.run_folder import RunFolder

__all__ = ["StepTime"]


class StepTime(L.Callback):
    """Appends what training cost to the run's measurements when it ends: time a step and an epoch, and parameters.

    Loading of batches, validation and audits are not counted. On a GPU the device is waited for only every
    ``every_n_steps`` steps, so that measuring does not slow down what is measured.

    Args:
        warmup: Steps at the start that are not counted (allocation, compilation).
        every_n_steps: Of the later steps, one in so many is measured.
    """

    def __init__(self, warmup: int = 3, every_n_steps: int = 1) -> None:
        self.warmup = warmup
        self.every_n_steps = every_n_steps
        self.seconds: list[float] = []
        self._seen = 0
        self._start: float | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._seen += 1
        measured = self._seen > self.warmup and (self._seen - self.warmup - 1) % self._stride(pl_module) == 0
        self._start = self._now(pl_module) if measured else None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock."""
        if self._start is not None:
            self.seconds.append(self._now(pl_module) - self._start)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the median step, an epoch of such steps, and the module's parameters, on rank zero."""
        if not self.seconds or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        step, n = median(self.seconds), len(self.seconds)
        found: dict[str, tuple[float, int | None]] = {"seconds_per_step": (step, n)}
        batches = trainer.num_training_batches
        if batches != float("inf"):
            found["seconds_per_epoch"] = (step * batches, n)
        weights = list(pl_module.parameters())
        found["parameters"] = (sum(w.numel() for w in weights), None)
        found["trainable_parameters"] = (sum(w.numel() for w in weights if w.requires_grad), None)
        run = RunFolder(trainer.default_root_dir)
        where = {"step": trainer.global_step, "epoch": trainer.current_epoch}
        for name, (value, count) in found.items():
            run.append_measurement({"kind": "cost", "name": name, "value": float(value), "n": count, **where})

    def _stride(self, module: L.LightningModule) -> int:
        return self.every_n_steps if module.device.type == "cpu" else max(self.every_n_steps, 10)

    @staticmethod
    def _now(module: L.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()
