"""The NoPeek defence: says when the mathematics of `functional` is applied in a training run."""

from typing import Any, ClassVar

import lightning.pytorch as L
import torch
from torch import Tensor

from lightning_privacy.callbacks.nopeek.functional import distance_correlation
from lightning_privacy.core.batches import images_of
from lightning_privacy.core.defence import Defence, Slot, Step
from lightning_privacy.core.step_taps import StepTaps
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["NoPeek"]


class NoPeek(Defence):
    """Train a layer whose outputs are little correlated with the pictures (NoPeek, arXiv 2008.09161).

    The loss becomes ``L + strength dCor(X, Z)``, with the distance correlation of the batch that one process holds.

    Args:
        tap: Name of the layer that leaves the device, or a glob that matches it alone.
        strength: Weight of the distance correlation, at least 0; 0 trains the undefended model.

    Raises:
        InputError: the weight is out of range.

    Example:
        >>> NoPeek("network.conv1", strength=0.5).init_args
        {'tap': 'network.conv1', 'strength': 0.5}
    """

    name: ClassVar[str] = "nopeek"
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
    breaks = frozenset({Property.PER_SAMPLE_SEPARABLE})  # distance correlation is a statistic of the batch

    def __init__(
        self,
        tap: str,
        strength: float | int = 0.5,  # chosen here: both terms lie near 1 at the start, and the loss must lead
    ) -> None:
        if not 0 <= strength < float("inf"):
            raise InputError(f"NoPeek: `strength` is {strength}; it must be a finite number, at least 0.")
        super().__init__()
        self.tap, self.strength = tap, strength
        self._listener = StepTaps(self.name, [tap])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the layer."""
        self._listener.listen(pl_module)

    def objective(self, step: Step) -> Tensor:
        """Return ``L + strength dCor(X, Z)``."""
        pictures = images_of(step.batch)
        found = self._listener.take(len(pictures))[self.tap]
        with torch.autocast(step.loss.device.type, enabled=False):
            correlation = distance_correlation(pictures.float(), found.float())
            loss = step.loss + self.strength * correlation
        step.module.log(f"defence/{self.name}/distance_correlation", correlation.detach(), on_step=True, on_epoch=False)
        return loss

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._listener.close()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._listener.close()
        super().teardown(trainer, pl_module, stage)
