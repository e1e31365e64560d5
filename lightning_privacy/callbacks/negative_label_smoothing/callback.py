"""Negative label smoothing: says when the mathematics of `functional` is applied in a training run."""

from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_privacy.callbacks.negative_label_smoothing import functional as math
from lightning_privacy.core.batches import labels_of
from lightning_privacy.core.defence import Defence, Slot, Step, require
from lightning_privacy.core.step_taps import StepTaps
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["NegativeLabelSmoothing"]

_SNIPPET = "    def logits(self, batch):\n        return self.network(batch[0])"


class NegativeLabelSmoothing(Defence):
    """Smooth the labels of a classifier by a factor that may be negative (arXiv 2310.06549).

    Adds ``alpha mean(z_y - mean_k z_k)`` to the loss, which turns a plain cross-entropy into the smoothed one. The
    logits are, in this order, those that leave the layer `tap`, those that ``training_step`` returns as ``logits``, or
    those of a second forward pass, ``module.logits(batch)``.

    Args:
        factor: alpha, at most 1. Below 0 it makes the model sure of itself and its outputs hard to optimise over; above
            0 it is the usual label smoothing, which makes class-level inversion easier; 0 trains the undefended model.
        warmup: Share of training, 0 to 1, before which the factor is 0.
        ramp: Share of training after ``warmup`` over which it grows to its full size, in steps of an epoch.
        tap: Name of the layer whose output is the logits (``network`` of `ImageClassifier`), or a glob that matches it
            alone. None for a module whose step returns its logits, or that has ``logits(batch)``.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> NegativeLabelSmoothing(tap="network").factor
        -0.05
    """

    name: ClassVar[str] = "negative_label_smoothing"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.OBJECTIVE})
    after: ClassVar[frozenset[str]] = frozenset({"smp_lora"})  # whose ratio may start from the module's own loss
    requires = frozenset(
        {
            Property.UNSHARDED,
            Property.LAUNCHER_KEEPS_MODULE,
            Property.ONE_STEP_PER_CLOSURE,
            Property.AUTOMATIC_OPTIMIZATION,
        }
    )

    def __init__(
        self,
        factor: float | int = -0.05,  # chosen here: small, because below 0 the loss has no lower bound
        warmup: float | int = 0.5,  # released code: epoch 50 of 100
        ramp: float | int = 0.25,  # released code: until epoch 75 of 100
        tap: str | None = None,
    ) -> None:
        if not -float("inf") < factor <= 1:
            raise InputError(f"NegativeLabelSmoothing: `factor` is {factor}; it must be a finite number, at most 1.")
        if not (0 <= warmup < 1 and ramp >= 0 and warmup + ramp <= 1):
            raise InputError(
                f"NegativeLabelSmoothing: `warmup` is {warmup} and `ramp` {ramp}; both are shares of training, warmup "
                "below 1 and the two together at most 1."
            )
        super().__init__()
        self.factor, self.warmup, self.ramp, self.tap = factor, warmup, ramp, tap
        self._listener = StepTaps(self.name, [] if tap is None else [tap])
        self._now = 0.0

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Warn of a run that ends within the warm-up."""
        epochs = trainer.max_epochs or 0
        last = (epochs - 1) / epochs if epochs > 0 else 1.0
        rehearsal = getattr(trainer, "fast_dev_run", False)
        if self.factor and not rehearsal and not self._at(last):
            rank_zero_warn(
                f"`{self.name}` never acts in this run: {epochs} epochs end within the warm-up of {self.warmup:g}. Train "
                "longer, or lower `warmup`."
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Find the factor in force, and listen to the layer if it is not 0."""
        self._now = self._at(_done(trainer)) if self.warmup or self.ramp else float(self.factor)
        if self._now and self.tap is not None:
            self._listener.listen(pl_module)

    def objective(self, step: Step) -> Tensor:
        """Return ``L + alpha mean(z_y - mean_k z_k)``."""
        loss = step.loss
        if self._now:  # a second forward pass at factor 0 would still move dropout's random state
            labels = labels_of(step.batch)
            logits = self._logits(step, len(labels))
            if logits.ndim != 2 or len(logits) != len(labels):
                raise InputError(
                    f"`{self.name}` got logits of shape {tuple(logits.shape)} for {len(labels)} labels; it needs one row "
                    "of class scores a record."
                )
            with torch.autocast(loss.device.type, enabled=False):
                margin = math.margin_over_mean(logits.float(), labels).mean()
                loss = loss + self._now * margin
            step.module.log(f"defence/{self.name}/margin", margin.detach(), on_step=True, on_epoch=False)
        step.module.log(f"defence/{self.name}/factor", self._now, on_step=True, on_epoch=False)
        return loss

    def _logits(self, step: Step, rows: int) -> Tensor:
        if self.tap is not None:
            return self._listener.take(rows)[self.tap]
        shared = step.outputs.get("logits")
        if isinstance(shared, Tensor) and shared.requires_grad:
            return shared
        return require(step.module, "logits", self.name, _SNIPPET)(step.batch)

    def _at(self, done: float) -> float:
        return math.scheduled_factor(float(self.factor), done, self.warmup, self.ramp)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._listener.close()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._listener.close()
        super().teardown(trainer, pl_module, stage)


def _done(trainer: L.Trainer) -> float:
    """Return which share of training is done, by whichever limit comes first.

    Raises:
        InputError: the trainer has no end.
    """
    shares = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        shares.append(trainer.current_epoch / trainer.max_epochs)
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    if not shares:
        raise InputError(
            "`negative_label_smoothing` grows over a share of training, but this trainer has no end: give `max_epochs` or "
            "`max_steps`, or set `warmup` and `ramp` to 0."
        )
    return max(shares)
