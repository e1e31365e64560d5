"""The GradientBottleneck defence: says when the bottleneck is inserted, drawn from and charged for."""

from typing import Any, ClassVar

import lightning.pytorch as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from lightning_privacy.attacks.leakage.recovered import LeakageAttack
from lightning_privacy.callbacks.gradient_bottleneck.attack import LatentSearch
from lightning_privacy.callbacks.gradient_bottleneck.layers import BottleneckedHead
from lightning_privacy.callbacks.gradient_noise.private_seed import StepNoise
from lightning_privacy.callbacks.variational_bottleneck.functional import bottleneck_objective
from lightning_privacy.core.defence import Defence, Slot, Step, SurgeryReport
from lightning_privacy.core.surgery import replace_modules
from lightning_privacy.core.taps import find_tap
from lightning_privacy.errors import InputError, NoEffectError
from lightning_privacy.properties import Property

__all__ = ["GradientBottleneck"]


class GradientBottleneck(Defence):
    """Put a variational bottleneck before the head, so that gradients depend on a draw nobody shares (PRECODE).

    The head's features h are encoded to ``z ~ N(mu(h), sigma(h)^2)`` and decoded again, each by a linear layer, and the
    loss becomes ``L + beta KL(N(mu, sigma^2) || N(0, 1))``, summed over latents and averaged over records.

    Args:
        head: Name of the linear layer before which the bottleneck is put, or a glob that matches it alone; None for the
            last linear layer of the module.
        latents: Size of the latent, at least 1.
        beta: Weight of the divergence in nats a record, at least 0.
        sample_at_inference: Whether the latent is drawn in evaluation mode too; gradients are shared in training alone.
        seed: Of the draws in training, and of the new layers. None starts the layers as 0 does, and draws with a seed that
            nobody knows and that full checkpoints keep; who knows a number repeats the draws.

    Raises:
        InputError: an argument is out of range.

    Example:
        >>> GradientBottleneck("network.head").latents
        256

    Source:
        Scheliga, Maeder and Seeland, "PRECODE", WACV 2022, arXiv 2108.04725.
    """

    name: ClassVar[str] = "gradient_bottleneck"
    slots: ClassVar[frozenset[Slot]] = frozenset({Slot.SURGERY, Slot.OBJECTIVE})
    # Sparse coding replaces layers; SMP-LoRA's ratio may start from the module's own loss and would drop the divergence.
    after: ClassVar[frozenset[str]] = frozenset({"sparse_coding", "smp_lora"})
    adaptive_attacks: ClassVar[tuple[str, ...]] = (
        "lightning_privacy.callbacks.gradient_bottleneck.attack:LatentSearch",
    )
    guarantee: str = (
        "none: the draw can be searched for or left out of the matching; measured against the attacks named"
    )
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
        head: str | None = None,
        latents: int = 256,  # chosen here: as many as variational_bottleneck's source has
        beta: float | int = 1e-3,  # chosen here: at 256 latents, as there
        sample_at_inference: bool = False,  # chosen here: scores of evaluation are then repeatable
        seed: int | None = None,
    ) -> None:
        if latents < 1:
            raise InputError(f"GradientBottleneck: `latents` is {latents}; it must be at least 1.")
        if not 0 <= beta < float("inf"):
            raise InputError(f"GradientBottleneck: `beta` is {beta}; it must be a finite number, at least 0.")
        super().__init__()
        self.head, self.latents, self.beta = head, latents, beta
        self.sample_at_inference, self.seed = sample_at_inference, seed
        self._noise = StepNoise(self.name, seed)

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Settle the seed of the draws."""
        self._noise.prepare(trainer)

    def informed_attacks(self) -> tuple[LeakageAttack, ...]:
        """Return the attacks that know this defence with its settings."""
        return LatentSearch(), LatentSearch(skip_bottleneck=True)

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Put the bottleneck before the head."""
        there = _bottleneck(module)
        if there is not None:
            there.latent.sample_at_inference = self.sample_at_inference
        place = there.latent.place if there is not None else self._place(module)

        def before(layer: nn.Module) -> BottleneckedHead:
            if not isinstance(layer, nn.Linear):
                raise InputError(
                    f"`{self.name}` goes before a linear head, but `{place}` is a {type(layer).__name__}; name the last "
                    "linear layer."
                )
            return BottleneckedHead(layer, self.latents, self.sample_at_inference, place)

        return replace_modules(module, BottleneckedHead, names=[place], factory=before, seed=self.seed or 0)

    def objective(self, step: Step) -> Tensor:
        """Return ``L + beta * R``.

        Raises:
            NoEffectError: the head was not called in the training step.
        """
        latent = self._layer(step.module).latent
        rates = latent.heard()
        if rates is None:
            raise NoEffectError(
                f"`{self.name}`: the training step did not call `{latent.place}` with gradients on, so that nothing passed "
                "the bottleneck; name the linear layer that the forward pass ends with."
            )
        step.module.log(f"defence/{self.name}/rate", rates.detach().mean(), on_step=True, on_epoch=False)
        return bottleneck_objective(step.loss, rates, self.beta)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the latent; make its draws a function of seed, process, epoch and batch."""
        latent = self._layer(pl_module).latent
        key = self._noise.key()
        latent.randomness.begin(self.name, key, trainer.global_rank, trainer.current_epoch, batch_idx)
        latent.listen()

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

    def state_dict(self) -> dict[str, Any]:
        """Return the seed that was drawn."""
        return self._noise.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed of the run that is continued."""
        self._noise.load_state_dict(state_dict)

    def _end(self, module: L.LightningModule) -> None:
        layer = _bottleneck(module)
        if layer is not None:
            layer.latent.randomness.end()
            layer.latent.heard()

    def _place(self, module: L.LightningModule) -> str:
        if self.head is not None:
            return find_tap(module, self.head)[0]
        linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise NoEffectError(
                f"`{self.name}` found no linear layer in {type(module).__name__} to put the bottleneck before; name one in "
                "`head`, or build the model in `__init__` or `configure_model`."
            )
        return linear[-1]

    def _layer(self, module: L.LightningModule) -> BottleneckedHead:
        layer = _bottleneck(module)
        if layer is None:
            raise NoEffectError(
                f"`{self.name}` is no longer part of {type(module).__name__}: something replaced the head afterwards. "
                "Apply it last, or name another layer."
            )
        return layer


def _bottleneck(module: nn.Module) -> BottleneckedHead | None:
    return next((m for m in module.modules() if isinstance(m, BottleneckedHead)), None)
