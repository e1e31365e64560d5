"""One plain line every few seconds, for log files, where a progress bar prints nothing or control characters."""

import sys
import time
from io import TextIOBase
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.types import STEP_OUTPUT

__all__ = ["ProgressLines", "duration"]


class ProgressLines(L.Callback):
    """Prints one line every ``every_n_seconds``: epoch, step, losses, steps a second, time left. Rank zero only.

    Args:
        every_n_seconds: Least time between two lines, seconds; 0 prints a line each step.
        stream: Where to print; standard output if None.
    """

    def __init__(self, every_n_seconds: float | int = 15.0, stream: TextIOBase | None = None) -> None:
        self.every_n_seconds = every_n_seconds
        self._stream = stream
        self._last_time = self._start_time = 0.0
        self._last_step = self._start_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; say what is ahead."""
        self._last_time = self._start_time = time.monotonic()
        self._last_step = self._start_step = trainer.global_step
        total = _total_steps(trainer)
        resumed = f", from step {trainer.global_step}" if trainer.global_step else ""
        self._print(f"training for {f'{total} steps' if total else 'an unknown number of steps'}{resumed}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if it is time."""
        now = time.monotonic()
        if now - self._last_time < self.every_n_seconds or trainer.global_step == self._last_step:
            return
        speed = (trainer.global_step - self._last_step) / max(now - self._last_time, 1e-9)
        self._last_time, self._last_step = now, trainer.global_step
        self._print(self.line(trainer, outputs, speed))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the whole time and the mean speed."""
        seconds = time.monotonic() - self._start_time
        steps = trainer.global_step - self._start_step
        self._print(f"trained {steps} steps in {duration(seconds)} ({steps / max(seconds, 1e-9):.2f} it/s)")

    def line(self, trainer: L.Trainer, outputs: STEP_OUTPUT, speed: float | int) -> str:
        """Return the line for the current step.

        Args:
            trainer: The trainer.
            outputs: What the training step returned.
            speed: Steps a second since the last line.
        """
        total = _total_steps(trainer)
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        parts = [
            f"epoch {trainer.current_epoch + 1}{epochs}",
            f"step {trainer.global_step}{f'/{total}' if total else ''}",
        ]
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            parts.append(f"loss {loss.item():.4g}")
        seen = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/loss")}
        parts += [f"{name} {float(value):.4g}" for name, value in seen.items()]
        parts.append(f"{speed:.2f} it/s")
        if total:
            parts.append(f"left {duration((total - trainer.global_step) / max(speed, 1e-9))}")
        return "  ".join(parts)

    @rank_zero_only
    def _print(self, text: str) -> None:
        stream = self._stream or sys.stdout  # looked up late: tests and notebooks replace it
        stream.write(text + "\n")
        stream.flush()


def duration(seconds: float | int) -> str:
    """Return a time as ``h:mm:ss``.

    Example:
        >>> duration(3725.4)
        '1:02:05'
    """
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _total_steps(trainer: L.Trainer) -> int | None:
    if trainer.max_steps > 0:
        return trainer.max_steps
    total = trainer.estimated_stepping_batches
    return int(total) if total != float("inf") else None
