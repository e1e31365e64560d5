"""The base of all defences: a named, declarative Lightning callback."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

import lightning.pytorch as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from lightning_privacy.errors import MissingProtocolError
from lightning_privacy.properties import Property
from lightning_privacy.protocols import Batch, Draw

__all__ = ["Defence", "Slot", "Step", "SurgeryReport"]


class Slot(IntEnum):
    """Where in a training run a defence acts, in order of application."""

    SURGERY = 0
    OBJECTIVE = 1
    GRADIENT = 2
    POST_STEP = 3
    CHECKPOINT = 4


@dataclass(frozen=True)
class SurgeryReport:
    """What a defence changed in a module.

    Args:
        layers: Names of the modules that were replaced, wrapped or inserted.
        parameters_added: Trainable numbers added, minus those removed.
        layout: Plain values from which the same surgery can be repeated; goes into the checkpoint's manifest.
    """

    layers: tuple[str, ...] = ()
    parameters_added: int = 0
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Step:
    """One training step as the objective defences see it.

    Args:
        trainer: The trainer.
        module: The user's module.
        batch: The batch given to ``training_step``.
        batch_idx: Its index in the epoch.
        outputs: What the user's ``training_step`` returned.
        loss: The current loss; each defence returns the next one.
    """

    trainer: L.Trainer
    module: L.LightningModule
    batch: Batch
    batch_idx: int
    outputs: Mapping[str, Any]
    loss: Tensor

    @property
    def shared_error(self) -> Tensor | None:
        """The per-sample error that the user's step returned beside its loss, with its graph, or None."""
        return self.outputs.get("per_sample_error")

    @property
    def shared_draw(self) -> Draw | None:
        """The draw of `shared_error`, or None."""
        return self.outputs.get("draw")


class Defence(L.Callback):
    """Base of all defences.

    A subclass sets `name` and `slots`, declares the `Property` values that it requires and breaks (on the class, or on
    the instance where they depend on arguments), keeps every constructor argument under its own name, and implements
    the method of each of its slots. The stack calls them; the subclass never patches anything itself.
    """

    name: ClassVar[str] = ""
    slots: ClassVar[frozenset[Slot]] = frozenset()
    after: ClassVar[frozenset[str]] = frozenset()
    """Names of defences that act before this one inside a shared slot."""
    adaptive_attacks: ClassVar[tuple[str, ...]] = ()
    """Import paths (``package.module:Class``) of the attacks that know this defence; see the class's folder."""
    remedies: ClassVar[Mapping[Property, str]] = {}
    """For each required property, what the user can do where it is broken."""
    guarantee: str = "empirical: measured against the attacks named in the report, no proof"

    requires: frozenset[Property] = frozenset()
    breaks: frozenset[Property] = frozenset()

    @property
    def state_key(self) -> str:
        """Key of the callback's state in checkpoints."""
        return f"defence:{self.name}"

    @property
    def init_args(self) -> dict[str, Any]:
        """The resolved constructor arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def fresh(self) -> "Defence":
        """Return an untouched defence with the same arguments, for another run (a shadow model, say)."""
        return type(self)(**self.init_args)

    # --- slots -------------------------------------------------------------------------------------------------

    def prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Build what the defence trains or keeps beside the model, after conflicts are resolved.

        Called at the first fit of a module on a datamodule, and before a checkpoint is loaded. Another ``trainer.fit``
        of the same two with the same trainer goes on with what was built: it has been trained, as the model has been.
        A new trainer starts anew.
        """

    def surgery(self, module: L.LightningModule) -> SurgeryReport:
        """Replace, wrap or insert layers. Must be idempotent: a second call reports the same layers and changes none."""
        raise NotImplementedError

    def objective(self, step: Step) -> Tensor:
        """Return the loss to back-propagate in place of ``step.loss``."""
        raise NotImplementedError

    def transform_gradients(self, module: L.LightningModule, optimizer: Optimizer) -> None:
        """Change ``p.grad`` in place, after unscaling and before the optimizer's step."""
        raise NotImplementedError

    def after_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Act on the weights after an optimizer step."""
        raise NotImplementedError

    # --- Lightning's hooks: all flow goes through the stack ----------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Build the stack if this is the first defence to arrive, and install its interception."""
        from lightning_privacy.core.stack import DefenceStack

        DefenceStack.of(trainer).install(self, trainer, pl_module, stage)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check what only exists now: the optimizers, and that surgery took effect."""
        self._stack(trainer).check_fit(self, trainer, pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Run the gradient slot, once for the whole stack."""
        self._stack(trainer).transform_gradients(self, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Run the post-step slot, once for the whole stack."""
        self._stack(trainer).after_step(self, trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the manifest, also after ``fit`` has returned and the interception is gone."""
        self._stack(trainer).write_manifest(self, checkpoint)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the module as the user gave it: Lightning does not call ``teardown`` after an exception."""
        from lightning_privacy.core.stack import DefenceStack

        DefenceStack.release(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the interception."""
        self._stack(trainer).uninstall(pl_module)

    def _stack(self, trainer: L.Trainer) -> Any:
        from lightning_privacy.core.stack import DefenceStack

        return DefenceStack.of(trainer)


def require(module: L.LightningModule, method: str, defence: str, snippet: str) -> Any:
    """Return a bound method of the user's module.

    Args:
        module: The user's module.
        method: Name of the protocol's method.
        defence: Who asks, for the error.
        snippet: Lines that the user can paste into the module.

    Raises:
        MissingProtocolError: the module has no such method.
    """
    found = getattr(module, method, None)
    if not callable(found):
        raise MissingProtocolError(
            f"{defence} needs `{type(module).__name__}.{method}`. Add it to the module, or pass a function by import "
            f"path (`error_fn`). For example:\n{snippet}"
        )
    return found
