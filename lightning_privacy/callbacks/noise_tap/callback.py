"""The NoiseTap defence: noise on what leaves one layer, whoever looks at it and whenever."""

from typing import Any, ClassVar, get_args

import lightning.pytorch as L
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_privacy.callbacks.noise_tap.functional import Bounding, Distribution
from lightning_privacy.callbacks.noise_tap.layers import AddNoise
from lightning_privacy.core.defence import Defence, Slot, SurgeryReport
from lightning_privacy.core.layer_hooks import attach, check_attached, check_ran, hooks_of
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["NoiseTap"]


class NoiseTap(Defence):
    """Add noise to the output of one layer, in training and at inference (arXiv 2104.05743).

    Whoever listens at the layer sees the noisy tensor: the rest of the network, an audit, an attacker.

    Args:
        tap: Name of the layer whose output leaves the client, or a glob that matches one layer alone.
        sigma: Standard deviation of the noise on each number, at least 0, in units of the layer's output; 0 adds none.
        distribution: ``gaussian``, or ``laplace`` (of scale ``sigma / sqrt(2)``).
        bound: Limit of the output before the noise, above 0, without which no noise is differentially private; None for
            none.
        bounding: How the limit is kept: ``clip`` or ``tanh`` each number, or ``norm`` of a picture's whole tensor.
        seed: Of the noise in training. At inference noise comes from the global random state.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> NoiseTap("network.conv1", sigma=0.5).init_args["distribution"]
        'gaussian'

    Source:
        Titcombe et al., arXiv 2104.05743: additive noise on the tensor that leaves the client.
    """

    name: ClassVar[str] = "noise_tap"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY})
    # trained through the defended model, so that it knows the defence
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.attacks.inversion.trained_decoder:TrainedDecoder",
    )
    after: ClassVar[frozenset[str]] = frozenset({"sparse_coding", "variational_bottleneck"})  # they replace layers
    requires = frozenset({Property.UNSHARDED, Property.LAUNCHER_KEEPS_MODULE})

    def __init__(
        self,
        tap: str,
        sigma: float | int,
        distribution: Distribution = "gaussian",
        bound: float | int | None = None,
        bounding: Bounding = "clip",
        seed: int = 0,
    ) -> None:
        if not 0 <= sigma < float("inf"):
            raise InputError(f"NoiseTap: `sigma` is {sigma}; it must be a finite number, at least 0.")
        if bound is not None and not 0 < bound < float("inf"):
            raise InputError(f"NoiseTap: `bound` is {bound}; it must be a finite number above 0, or null for no bound.")
        if distribution not in get_args(Distribution) or bounding not in get_args(Bounding):
            raise InputError(
                f"NoiseTap: `distribution` is {distribution!r} and `bounding` is {bounding!r}; they must be one of "
                f"{get_args(Distribution)} and one of {get_args(Bounding)}."
            )
        super().__init__()
        self.tap, self.sigma, self.bound, self.seed = tap, sigma, bound, seed
        self.distribution: Distribution = distribution
        self.bounding: Bounding = bounding

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Attach the noise to the layer."""
        noise = AddNoise(self.sigma, self.distribution, self.bound, self.bounding)
        return attach(module, self.name, [self.tap], noise)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that the noise is still attached."""
        super().on_fit_start(trainer, pl_module)
        check_attached(pl_module, self.name)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the noise of this step a function of seed, process, epoch and batch."""
        for hook in hooks_of(pl_module, self.name):
            key = (self.name, self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
            hook.change.randomness.begin(*key)  # pyright: ignore[reportFunctionMemberAccess]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Return to the global random state, and check that there was noise."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._end(pl_module)
        check_ran(pl_module, self.name)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Return to the global random state."""
        self._end(pl_module)
        super().on_exception(trainer, pl_module, exception)

    def _end(self, module: L.LightningModule) -> None:
        for hook in hooks_of(module, self.name):
            hook.change.randomness.end()  # pyright: ignore[reportFunctionMemberAccess]
