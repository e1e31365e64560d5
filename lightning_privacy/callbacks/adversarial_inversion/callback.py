"""Adversarial inversion training: says when the mathematics of `functional` is applied in a training run."""

from typing import Any, ClassVar, Literal

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.adversarial_inversion import functional as math
from lightning_privacy.callbacks.adversarial_inversion.decoder import InversionDecoder
from lightning_privacy.core.batches import images_of
from lightning_privacy.core.defence import Defence, Slot, Step
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.core.side_learner import SideLearner
from lightning_privacy.core.step_taps import StepTaps
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["AdversarialInversion"]


class AdversarialInversion(Defence):
    """Train against a decoder that reconstructs the pictures from a layer (ResSFL, CVPR 2022; arXiv 1909.04126).

    The decoder learns beside the model, on the batches that the model is trained on; the model minimises
    ``L - strength mean min(e, ceiling)``, e the decoder's error on each picture. Needs pictures in [0, 1].

    Args:
        tap: Name of the layer that leaves the device, or a glob that matches it alone.
        strength: Weight of the decoder's error, at least 0; 0 trains the undefended model.
        measure: Error of a picture: ``mse``, or ``ssim`` for 1 - SSIM.
        ceiling: Error beyond which a picture counts as hidden, above 0. None takes 0.05 for ``mse`` and 0.5 for ``ssim``.
        decoder_steps: Steps of the decoder a training step, at least 1.
        width: Channels of the decoder.
        lr: Learning rate of the decoder's Adam.
        seed: Of the decoder's first weights.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> AdversarialInversion("network.conv2").strength
        1.0
    """

    name: ClassVar[str] = "adversarial_inversion"
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
    breaks = frozenset({Property.SIDE_STATE_PRIVATE})  # the decoder learns to draw the members

    def __init__(
        self,
        tap: str,
        strength: float | int = 1.0,  # chosen here: with 1 - SSIM both terms are of the loss's size
        measure: Literal["mse", "ssim"] = "ssim",  # ResSFL
        ceiling: float | int | None = None,
        decoder_steps: int = 3,  # ResSFL's released code
        width: int = 32,  # chosen here: 40 thousand weights, small beside any network worth defending
        lr: float | int = 1e-3,  # Adam's usual rate
        seed: int = 0,
    ) -> None:
        if not 0 <= strength < float("inf"):
            raise InputError(f"AdversarialInversion: `strength` is {strength}; it must be a finite number, at least 0.")
        if ceiling is not None and not ceiling > 0:
            raise InputError(f"AdversarialInversion: `ceiling` is {ceiling}; it must be above 0.")
        if decoder_steps < 1 or width < 1 or not 0 < lr < float("inf"):
            raise InputError(
                f"AdversarialInversion: `decoder_steps` is {decoder_steps}, `width` {width} and `lr` {lr}; the first two "
                "must be at least 1, the last a finite number above 0."
            )
        super().__init__()
        self.tap, self.strength, self.ceiling = tap, strength, ceiling
        self.measure: Literal["mse", "ssim"] = measure
        self.decoder_steps, self.width, self.lr, self.seed = decoder_steps, width, lr, seed
        self._listener = StepTaps(self.name, [tap])
        self._learner: SideLearner | None = None
        self._restored: dict[str, Any] | None = None

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget an earlier run's decoder; it is built anew when the tap's shape is first seen."""
        self._learner = self._restored = None  # a checkpoint's state comes after

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the layer."""
        self._listener.listen(pl_module)

    def objective(self, step: Step) -> Tensor:
        """Train the decoder on this batch, then return ``L - strength mean min(e, ceiling)``."""
        pictures = images_of(step.batch)
        found = self._listener.take(len(pictures))[self.tap]
        with torch.autocast(step.loss.device.type, enabled=False):
            pictures, tap = pictures.float(), found.float()
            learner = self._learner if self._learner is not None else self._build(tap, pictures)
            self._learner, seen = learner, tap.detach()
            for _ in range(self.decoder_steps):
                learner.step(lambda: math.reconstruction_error(learner.module(seen), pictures, self.measure).mean())
            with learner.frozen() as decoder:
                error = math.reconstruction_error(decoder(tap), pictures, self.measure)
            loss = step.loss - self.strength * math.hidden_error(error, self._ceiling())
        step.module.log(
            f"defence/{self.name}/{self.measure}_error", error.detach().mean(), on_step=True, on_epoch=False
        )
        return loss

    def _ceiling(self) -> float:
        # chosen here: SSIM 0.5, and the MSE of a grey guess on pictures of a common contrast (13 dB)
        return float(self.ceiling) if self.ceiling is not None else {"mse": 0.05, "ssim": 0.5}[self.measure]

    def _build(
        self, tap: Float[Tensor, "batch ..."], pictures: Float[Tensor, "batch channels height width"]
    ) -> SideLearner:
        if float(pictures.min()) < 0 or float(pictures.max()) > 1:
            raise InputError(
                f"`{self.name}` reconstructs pictures in [0, 1], but the batch's lie from {float(pictures.min()):.3g} to "
                f"{float(pictures.max()):.3g}. Normalise inside the module (`mean` and `std` of ImageClassifier)."
            )
        shape = (pictures.shape[1], pictures.shape[2], pictures.shape[3])
        learner = SideLearner(
            lambda: InversionDecoder(tuple(tap.shape[1:]), shape, self.width),
            lambda parameters: torch.optim.Adam(parameters, lr=self.lr),
            tap.device,
            derive_seed(self.seed, self.name),
        )
        if self._restored is not None:
            learner.load_state_dict(self._restored)
            self._restored = None
        return learner

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._listener.close()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._listener.close()
        super().teardown(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the decoder and its optimizer."""
        if self._learner is not None:
            return self._learner.state_dict()
        return self._restored or {}  # not built since the run was resumed: what was loaded still holds

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the decoder, when it is built if it is not yet."""
        if not state_dict:
            return
        if self._learner is None:
            self._restored = state_dict
        else:
            self._learner.load_state_dict(state_dict)
