"""The ClipAndNoise defence: says when the mathematics of `functional` is applied in a training run."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import lightning.pytorch as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.callbacks.clip_and_noise import functional as math
from lightning_privacy.callbacks.clip_and_noise.attack import ClippedLikelihood
from lightning_privacy.callbacks.clip_and_noise.units import Unit, choose_unit, smallest_batch
from lightning_privacy.callbacks.gradient_noise.functional import add_noise
from lightning_privacy.callbacks.gradient_noise.private_seed import StepNoise
from lightning_privacy.callbacks.gradient_pruning.gradients import gradients_of, put_gradients
from lightning_privacy.core.defence import Defence, Slot, Step
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property

__all__ = ["ClipAndNoise"]


class ClipAndNoise(Defence):
    """Clip gradients to a norm and add Gaussian noise in proportion to it, without any privacy claim (arXiv 1607.00133).

    Args:
        max_norm: C, above 0: the largest norm of one clipped gradient.
        noise_multiplier: sigma, at least 0: noise of standard deviation ``sigma C / n`` on the mean of n clipped gradients.
        unit: What is clipped. ``record``: each record's own gradient, by one backward pass a record; n is then the number
            of records in the step. ``batch``: the gradient that reaches the optimizer; n is then 1. ``auto``: ``record``
            where the module offers ``per_sample_loss`` and nothing mixes records or changes the loss, else ``batch``.
        seed: Of the noise. None draws one that nobody knows and keeps it in full checkpoints; a number repeats a run, and
            lets whoever knows it subtract the noise.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> defence = ClipAndNoise(max_norm=1.0, noise_multiplier=0.0)
        >>> defence.defended_update({"w": torch.tensor([0.0, 5.0])}, torch.Generator())["w"].tolist()
        [0.0, 1.0]

    Source:
        Abadi et al., arXiv 1607.00133, algorithm 1 (records); McMahan et al., arXiv 1710.06963 (a client's whole update).
    """

    name: ClassVar[str] = "clip_and_noise"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.OBJECTIVE, Slot.GRADIENT})
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.callbacks.clip_and_noise.attack:ClippedLikelihood",
        "lightning_privacy.attacks.leakage.inverting_gradients:InvertingGradients",  # a direction survives clipping
    )
    remedies: ClassVar[Mapping[Property, str]] = {
        Property.NO_CROSS_SAMPLE_LAYERS: (
            "Set `unit: batch`, replace BatchNorm by GroupNorm, or leave `clip_and_noise` out."
        ),
        Property.TRAINER_CLIPPING_OFF: "Remove `gradient_clip_val` from the trainer; `max_norm` clips before the noise.",
        Property.PLAIN_GRADIENTS: "What clipping bounds must be the gradient itself: use one gradient defence only.",
    }
    guarantee: str = "none claimed: no accountant, no Poisson sampling; use Opacus for differential privacy"
    breaks = frozenset({Property.PLAIN_GRADIENTS})

    def __init__(
        self,
        max_norm: float | int = 1.0,  # chosen here: a common start, to be set to the median norm of gradients
        noise_multiplier: float | int = 0.01,  # chosen here; differential privacy asks for about 1, see the card
        unit: Unit = "auto",
        seed: int | None = None,
    ) -> None:
        if not 0 < max_norm < float("inf"):
            raise InputError(f"ClipAndNoise: `max_norm` is {max_norm}; it must be a finite number above 0.")
        if not 0 <= noise_multiplier < float("inf"):
            raise InputError(
                f"ClipAndNoise: `noise_multiplier` is {noise_multiplier}; it must be a finite number, at least 0."
            )
        if unit not in get_args(Unit):
            raise InputError(f"ClipAndNoise: `unit` is {unit!r}; it must be one of {get_args(Unit)}.")
        super().__init__()
        self.max_norm, self.noise_multiplier, self.seed = max_norm, noise_multiplier, seed
        self.unit: Unit = unit
        needed = {
            Property.UNSHARDED,
            Property.LAUNCHER_KEEPS_MODULE,
            Property.ONE_STEP_PER_CLOSURE,
            Property.AUTOMATIC_OPTIMIZATION,
            Property.TRAINER_CLIPPING_OFF,  # which would clip the noise
            Property.PLAIN_GRADIENTS,
        }
        by_record = {Property.PER_SAMPLE_SEPARABLE, Property.NO_CROSS_SAMPLE_LAYERS}
        self.requires = frozenset(needed | by_record if unit == "record" else needed)
        self.resolved_unit: Literal["record", "batch"] | None = None
        """What is clipped in this run; None before it has started."""
        self._noise = StepNoise(self.name, seed)
        self._records: list[int] = []

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Settle the seed."""
        self._noise.prepare(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide what is clipped, and say so."""
        super().on_fit_start(trainer, pl_module)
        self._records.clear()
        self.resolved_unit, why = choose_unit(self.unit, trainer, pl_module, self)
        cost = "one backward pass a record" if self.resolved_unit == "record" else "no further pass"
        rank_zero_info(f"`{self.name}` clips the gradient of each {self.resolved_unit}, with {cost}: {why}.")

    def objective(self, step: Step) -> Tensor:
        """Return the mean of the records' losses, each weighted so that its gradient is the clipped one."""
        if self.resolved_unit != "record":
            return step.loss
        losses: Float[Tensor, " records"] = step.module.per_sample_loss(  # pyright: ignore[reportCallIssue]
            step.batch, step.shared_draw
        )
        scaler = getattr(step.trainer.precision_plugin, "scaler", None)
        trained = [p for group in step.trainer.optimizers[0].param_groups for p in group["params"] if p.requires_grad]
        norms = math.record_norms(losses, trained, 1.0 if scaler is None else scaler.get_scale())
        self._records.append(len(losses))
        cut = (norms > self.max_norm).float().mean()
        step.module.log(f"defence/{self.name}/clipped", cut, on_step=True, on_epoch=False)
        return (losses * math.clip_factor(norms, self.max_norm).to(losses.dtype)).mean().to(step.loss.dtype)

    def defended_update(self, gradients: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return what is shared in place of a whole update: clipped to C, with noise of standard deviation sigma C.

        Args:
            gradients: A gradient or a weight difference, by parameter name; not changed.
            generator: Of the noise.
        """
        return math.clip_and_noise(gradients, self.max_norm, self.noise_multiplier, generator)

    def defended_records(self, per_record: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return what is shared in place of the mean of records' gradients, each of them clipped.

        Args:
            per_record: Gradients by parameter name, their first dimension the record; not changed.
            generator: Of the noise.
        """
        return math.clip_records_and_noise(per_record, self.max_norm, self.noise_multiplier, generator)

    def informed_attacks(self, units: int = 1) -> tuple[LeakageAttack, ...]:
        """Return the attacks that know this defence with its settings.

        Args:
            units: Clipped gradients whose mean is attacked.
        """
        return (ClippedLikelihood(self.max_norm, self.noise_multiplier, units),)

    def transform_gradients(self, module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add this step's noise in place, after clipping where the whole gradient is clipped; the same on every rank."""
        gradients = gradients_of(module, optimizer, self.name)
        if not gradients:
            return
        generator = self._noise.generator(module.trainer.global_step, module.device)
        if self.resolved_unit == "record":
            # A record's weight in the step is one over steps, ranks and batch; the smallest batch bounds it.
            units = smallest_batch(self._records, module.trainer, module.device)
            std = math.noise_std(self.max_norm, self.noise_multiplier, units)
            put_gradients(gradients, add_noise(gradients, std, generator))
        else:
            norm = math.global_norm(gradients)
            module.log(f"defence/{self.name}/norm", norm, on_step=True, on_epoch=False)
            put_gradients(gradients, math.clip_and_noise(gradients, self.max_norm, self.noise_multiplier, generator))
        self._records.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the seed that was drawn."""
        return self._noise.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed of the run that is continued."""
        self._noise.load_state_dict(state_dict)
