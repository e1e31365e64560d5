"""The BiDO defence: says when the mathematics of `functional` is applied in a training run."""

from collections.abc import Sequence
from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_privacy.callbacks.bido import functional as math
from lightning_privacy.core.batches import images_of, labels_of
from lightning_privacy.core.defence import Defence, Slot, Step
from lightning_privacy.core.step_taps import StepTaps
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["BiDO"]


class BiDO(Defence):
    """Train hidden layers that depend little on the picture and much on the label (BiDO-HSIC, arXiv 2206.05483).

    The loss becomes ``L + lambda_x sum_j HSIC(X, Z_j) - lambda_y sum_j HSIC(Z_j, Y)`` over the tapped layers j, with
    the normalised HSIC of the batch that one process holds. Needs batches of pictures and labels.

    Args:
        taps: Names of the layers, or globs that match one layer each.
        lambda_x: Weight of the dependence on the picture, at least 0.
        lambda_y: Weight of the dependence on the label, at least 0; both 0 train the undefended model.
        sigma: Width of the Gaussian kernels in units of the root of a record's number of values, above 0.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> BiDO(["network.conv1", "network.conv2"]).lambda_y
        0.5
    """

    name: ClassVar[str] = "bido"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.OBJECTIVE})
    # trained through the defended model, so that it knows the defence
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.attacks.inversion.trained_decoder:TrainedDecoder",
    )
    after: ClassVar[frozenset[str]] = frozenset({"smp_lora"})  # whose ratio may start from the module's own loss
    requires = frozenset(
        {
            Property.UNSHARDED,
            Property.LAUNCHER_KEEPS_MODULE,
            Property.ONE_STEP_PER_CLOSURE,
            Property.AUTOMATIC_OPTIMIZATION,
        }
    )
    breaks = frozenset({Property.PER_SAMPLE_SEPARABLE})  # HSIC is a statistic of the batch

    def __init__(
        self,
        taps: Sequence[str],
        lambda_x: float | int = 0.05,  # released code's README, CelebA with HSIC
        lambda_y: float | int = 0.5,  # the same
        sigma: float | int = 5.0,  # released code
    ) -> None:
        if isinstance(taps, str) or not taps:
            raise InputError(f"BiDO: `taps` is {taps!r}; give a list with at least one layer's name.")
        for argument, value in {"lambda_x": lambda_x, "lambda_y": lambda_y}.items():
            if not 0 <= value < float("inf"):
                raise InputError(f"BiDO: `{argument}` is {value}; it must be a finite number, at least 0.")
        if not 0 < sigma < float("inf"):
            raise InputError(f"BiDO: `sigma` is {sigma}; it must be a finite number above 0.")
        super().__init__()
        self.taps, self.lambda_x, self.lambda_y, self.sigma = list(taps), lambda_x, lambda_y, sigma
        self._listener = StepTaps(self.name, self.taps)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the layers."""
        self._listener.listen(pl_module)

    def objective(self, step: Step) -> Tensor:
        """Return ``L + lambda_x sum_j HSIC(X, Z_j) - lambda_y sum_j HSIC(Z_j, Y)``."""
        pictures, labels = images_of(step.batch), labels_of(step.batch)
        found = self._listener.take(len(pictures))
        with torch.autocast(step.loss.device.type, enabled=False):
            x, y = math.bido_terms(
                pictures.float(),
                labels,
                [found[tap].float() for tap in self.taps],
                self.sigma,
            )
            loss = step.loss + self.lambda_x * x - self.lambda_y * y
        values = {"hsic_x": x.detach(), "hsic_y": y.detach()}
        step.module.log_dict({f"defence/{self.name}/{k}": v for k, v in values.items()}, on_step=True, on_epoch=False)
        return loss

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._listener.close()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._listener.close()
        super().teardown(trainer, pl_module, stage)
