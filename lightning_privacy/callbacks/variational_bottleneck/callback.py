"""The VariationalBottleneck defence: says when the mathematics of `functional` is applied in a training run."""

from typing import Any, ClassVar

import lightning.pytorch as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_privacy.callbacks.variational_bottleneck.functional import bottleneck_objective
from lightning_privacy.callbacks.variational_bottleneck.layers import GaussianBottleneck
from lightning_privacy.core.channels import channels_of
from lightning_privacy.core.defence import Defence, Slot, Step, SurgeryReport
from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.core.taps import find_tap
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.properties import Property

__all__ = ["VariationalBottleneck"]


class VariationalBottleneck(Defence):
    """Let a layer pass on a random latent that carries little information on the picture (arXiv 2009.05241, 1612.00410).

    The layer's output is replaced by ``z ~ N(mu(x), sigma(x)^2)``, with mu and sigma from two linear heads over its
    channels, and the loss becomes ``L + beta * KL(N(mu, sigma^2) || N(0, 1))``, the divergence summed over latents and
    averaged over records. Whoever listens at the layer sees z.

    Args:
        tap: Name of the layer, or a glob that matches one layer alone.
        beta: Weight of the rate in nats a record, at least 0. The rate grows with the number of latents.
        sample_at_inference: Whether z is drawn in evaluation mode too; otherwise its mean is passed on there, which
            carries more information than the rate bounds.
        initial_std: sigma before training, above 0.
        features: Channels of the layer's output; None where the layer says it.
        seed: Of the draws in training. At inference they come from the global random state.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> VariationalBottleneck("network.conv2").beta
        0.001

    Source:
        Wang et al., AAAI 2021, arXiv 2009.05241; Alemi et al., ICLR 2017, arXiv 1612.00410.
    """

    name: ClassVar[str] = "variational_bottleneck"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY, Slot.OBJECTIVE})
    # trained through the defended model, so that it knows the defence
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.attacks.inversion.trained_decoder:TrainedDecoder",
    )
    # Sparse coding replaces layers; SMP-LoRA's ratio may start from the module's own loss and would drop the rate.
    after: ClassVar[frozenset[str]] = frozenset({"sparse_coding", "smp_lora"})
    requires = frozenset(
        {
            Property.UNSHARDED,
            Property.LAUNCHER_KEEPS_MODULE,
            Property.ONE_STEP_PER_CLOSURE,
            Property.AUTOMATIC_OPTIMIZATION,
        }
    )
    breaks = frozenset({Property.STABLE_STATE_DICT})

    def __init__(
        self,
        tap: str,
        beta: float | int = 1e-3,  # arXiv 1612.00410, its authors' MNIST demonstration, at 256 latents
        sample_at_inference: bool = True,
        initial_std: float | int = 0.1,  # chosen here: small beside activations of size 1, and soon unlearned
        features: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= beta < float("inf"):
            raise InputError(f"VariationalBottleneck: `beta` is {beta}; it must be a finite number, at least 0.")
        if not 0 < initial_std < float("inf"):
            raise InputError(
                f"VariationalBottleneck: `initial_std` is {initial_std}; it must be a finite number above 0."
            )
        if features is not None and features < 1:
            raise InputError(f"VariationalBottleneck: `features` is {features}; it must be at least 1, or null.")
        super().__init__()
        self.tap, self.beta, self.sample_at_inference = tap, beta, sample_at_inference
        self.initial_std, self.features, self.seed = initial_std, features, seed

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Put the bottleneck behind the layer."""
        there = self._find(module)
        if there is not None:
            there.sample_at_inference = self.sample_at_inference
        place = find_tap(module, self.tap)[0] if there is None else there.place

        def behind(layer: Any) -> GaussianBottleneck:
            channels = channels_of(layer, place, self.features)
            return GaussianBottleneck(
                layer, channels, self.initial_std, self.sample_at_inference, tap=self.tap, place=place
            )

        return replace_modules(module, GaussianBottleneck, names=[place], factory=behind, seed=self.seed)

    def objective(self, step: Step) -> Tensor:
        """Return ``L + beta * R``.

        Raises:
            NoEffectError: the layer was not called in the training step.
        """
        layer = self._layer(step.module)
        rates = layer.heard()
        if rates is None:
            raise NoEffectError(
                f"`{self.name}`: the training step did not call `{layer.place}` with gradients on, so that nothing passed the "
                "bottleneck; name a layer that the forward pass calls."
            )
        step.module.log(f"defence/{self.name}/rate", rates.detach().mean(), on_step=True, on_epoch=False)
        return bottleneck_objective(step.loss, rates, self.beta)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the layer; make its draws a function of seed, process, epoch and batch."""
        layer = self._layer(pl_module)
        layer.randomness.begin(self.name, self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        layer.listen()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Return to the global random state."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._end(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Return to the global random state, and let the step's graph go."""
        self._end(pl_module)
        super().on_exception(trainer, pl_module, exception)

    def _end(self, module: L.LightningModule) -> None:
        layer = self._find(module)
        if layer is not None:
            layer.randomness.end()
            layer.heard()

    def _find(self, module: L.LightningModule) -> GaussianBottleneck | None:
        return next((m for m in module.modules() if isinstance(m, GaussianBottleneck) and m.tap == self.tap), None)

    def _layer(self, module: L.LightningModule) -> GaussianBottleneck:
        layer = self._find(module)
        if layer is None:
            raise NoEffectError(
                f"`{self.name}` is no longer part of {type(module).__name__}: something replaced the layer at `{self.tap}` "
                "afterwards. Apply it last, or name another layer."
            )
        return layer
