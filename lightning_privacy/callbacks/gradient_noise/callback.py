"""The GradientNoise defence: says when the mathematics of `functional` is applied in a training run."""

from typing import Any, ClassVar, get_args

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.callbacks.gradient_noise.attack import NoiseLikelihood
from lightning_privacy.callbacks.gradient_noise.functional import Scale, add_noise, noise_to_signal
from lightning_privacy.callbacks.gradient_noise.private_seed import StepNoise
from lightning_privacy.callbacks.gradient_pruning.gradients import gradients_of, put_gradients
from lightning_privacy.callbacks.noise_tap.functional import Distribution
from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["GradientNoise"]


class GradientNoise(Defence):
    """Train and share with noise on every entry of the gradient (arXiv 1906.08935).

    Args:
        std: Standard deviation of the noise, at least 0; 0 adds none.
        scale: Unit of ``std``: ``relative`` to the standard deviation of each parameter's gradient about zero, or
            ``absolute``, in the gradient's own units.
        distribution: ``gaussian``, or ``laplace`` (of scale ``std / sqrt(2)``).
        seed: Of the noise. None draws one that nobody knows and keeps it in full checkpoints; a number repeats a run, and
            lets whoever knows it subtract the noise.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> noise = GradientNoise(std=0.1, scale="absolute")
        >>> update = noise.defended_update({"w": torch.zeros(10_000)}, torch.Generator().manual_seed(0))
        >>> round(update["w"].std().item(), 2)
        0.1

    Source:
        Zhu, Liu and Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, section on defences.
    """

    name: ClassVar[str] = "gradient_noise"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.GRADIENT})
    after: ClassVar[frozenset[str]] = frozenset({"gradient_pruning"})  # which would keep the noisiest entries
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.callbacks.gradient_noise.attack:NoiseLikelihood",
        "lightning_privacy.attacks.leakage.inverting_gradients:InvertingGradients",
    )
    guarantee: str = "none: nothing bounds what one record contributes; measured against the attacks named"
    requires = frozenset(
        {
            Property.UNSHARDED,
            Property.LAUNCHER_KEEPS_MODULE,
            Property.ONE_STEP_PER_CLOSURE,
            Property.AUTOMATIC_OPTIMIZATION,
        }
    )
    breaks = frozenset({Property.PLAIN_GRADIENTS})

    def __init__(
        self,
        # chosen here: as much noise as signal. arXiv 1906.08935 adds absolute noise of variance 1e-4 to 1e-1, whose effect
        # depends on the network's gradients: there its attack fails from 1e-2 on, where accuracy falls too.
        std: float | int = 1.0,
        scale: Scale = "relative",
        distribution: Distribution = "gaussian",
        seed: int | None = None,
    ) -> None:
        if not 0 <= std < float("inf"):
            raise InputError(f"GradientNoise: `std` is {std}; it must be a finite number, at least 0.")
        if scale not in get_args(Scale) or distribution not in get_args(Distribution):
            raise InputError(
                f"GradientNoise: `scale` is {scale!r} and `distribution` is {distribution!r}; they must be one of "
                f"{get_args(Scale)} and one of {get_args(Distribution)}."
            )
        super().__init__()
        self.std, self.seed = std, seed
        self.scale: Scale = scale
        self.distribution: Distribution = distribution
        self._noise = StepNoise(self.name, seed)

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Settle the seed."""
        self._noise.prepare(trainer)

    def defended_update(self, gradients: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return what is shared in place of an update.

        Args:
            gradients: A gradient or a weight difference, by parameter name; not changed.
            generator: Of the noise.
        """
        return add_noise(gradients, self.std, generator, self.distribution, self.scale)

    def informed_attacks(self) -> tuple[LeakageAttack, ...]:
        """Return the attacks that know this defence with its settings."""
        return (NoiseLikelihood(self.std, self.scale, self.distribution),)

    def transform_gradients(self, module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add this step's noise in place, the same on every rank."""
        gradients = gradients_of(module, optimizer, self.name)
        if not gradients or self.std == 0:
            return
        generator = self._noise.generator(module.trainer.global_step, module.device)
        noisy = add_noise(gradients, self.std, generator, self.distribution, self.scale)
        value = noise_to_signal(gradients, noisy)
        module.log(f"defence/{self.name}/noise_to_signal", value, on_step=True, on_epoch=False)
        put_gradients(gradients, noisy)

    def state_dict(self) -> dict[str, Any]:
        """Return the seed that was drawn."""
        return self._noise.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed of the run that is continued."""
        self._noise.load_state_dict(state_dict)
