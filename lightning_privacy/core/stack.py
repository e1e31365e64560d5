"""The one place where defences meet a trainer: collect, order, check, intercept, release."""

import operator
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_privacy.core.conflicts import Environment, find_conflicts, order_defences, raise_conflicts
from lightning_privacy.core.defence import Defence, Slot, Step, SurgeryReport
from lightning_privacy.core.manifest_record import check_manifest, plain_init_args, write_manifest
from lightning_privacy.errors import DefenceConflictError, NoEffectError
from lightning_privacy.properties import Property

__all__ = ["DefenceStack"]

_STACK = "_lightning_privacy_stack"
"""Attribute of the trainer. No global table: defences refer to the trainer, so that it would never be freed."""
_INSTALLED: "WeakKeyDictionary[torch.nn.Module, DefenceStack]" = WeakKeyDictionary()


# The patches are module-level functions bound with MethodType: they survive deepcopy (weight averaging copies modules)
# and Lightning sees them as overridden. functools.wraps would hide configure_model from Lightning.
def _configure_model(self: L.LightningModule) -> None:
    stack = _INSTALLED.get(self)
    if stack is None:  # a copy of the module: its layers were copied after surgery
        return type(self).configure_model(self)
    return stack.configure_model(self)


def _training_step(self: L.LightningModule, *args: Any, **kwargs: Any) -> Any:
    stack = _INSTALLED.get(self)
    if stack is None:
        raise DefenceConflictError(
            f"A copy of a defended {type(self).__name__} is being trained without its defences. "
            "Copy the module before `Trainer.fit`, or after it has returned."
        )
    return stack.training_step(self, *args, **kwargs)


def _on_save_checkpoint(self: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    stack = _INSTALLED.get(self)
    if stack is None:
        return type(self).on_save_checkpoint(self, checkpoint)
    return stack.save_checkpoint(self, checkpoint)


# On the module, because a callback hears of a checkpoint only after its weights were loaded or failed to load.
def _on_load_checkpoint(self: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    stack = _INSTALLED.get(self)
    if stack is None:
        return type(self).on_load_checkpoint(self, checkpoint)
    return stack.load_checkpoint(self, checkpoint)


_PATCHES: dict[str, tuple[Slot | None, Callable[..., Any]]] = {  # method -> (slot that needs it, None for any; patch)
    "configure_model": (Slot.SURGERY, _configure_model),
    "training_step": (Slot.OBJECTIVE, _training_step),
    "on_save_checkpoint": (None, _on_save_checkpoint),
    "on_load_checkpoint": (None, _on_load_checkpoint),
}


class DefenceStack:
    """All defences of one trainer, in order.

    Args:
        defences: The trainer's defences.
    """

    def __init__(self, defences: Sequence[Defence]) -> None:
        self.defences = order_defences(defences)
        self.leader = defences[0]  # first in the trainer's list: its hooks speak for the whole stack
        self.reports: dict[str, SurgeryReport] = {}
        self._originals: dict[str, Any] = {}
        self._prepared_for: tuple[Any, Any] | None = None
        self._module: L.LightningModule | None = None
        self._goes_on, self._wants_index = False, True
        self._intercepted = self._stepped = False

    @classmethod
    def of(cls, trainer: L.Trainer) -> "DefenceStack":
        """Return the trainer's stack, built at the first call from its callbacks."""
        defences = [c for c in trainer.callbacks if isinstance(c, Defence)]  # pyright: ignore[reportAttributeAccessIssue]
        stack = trainer.__dict__.get(_STACK)
        if stack is None or set(map(id, stack.defences)) != set(map(id, defences)):
            stack = trainer.__dict__[_STACK] = cls(defences)
        return stack

    @staticmethod
    def release(module: L.LightningModule) -> None:
        """Give a module its own methods back, whoever intercepts it; do nothing if nobody does."""
        stack = _INSTALLED.get(module)
        if stack is not None:
            stack.uninstall(module)

    def in_slot(self, slot: Slot) -> list[Defence]:
        """Return the defences that act in a slot, in order."""
        return [d for d in self.defences if slot in d.slots]

    def install(self, caller: Defence, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Check all defences and intercept the module's methods; later callers find it done."""
        if caller is not self.leader:
            return
        raise_conflicts(find_conflicts(self.defences, environment_of(trainer, module)))
        self._check_averaging(trainer)
        for defence in self.defences:
            plain_init_args(defence)  # what a manifest cannot hold must not come to light at the first checkpoint
        if _INSTALLED.get(module) is not self:
            self.release(module)  # of a run that ended without saying so
            self._intercept(module)
        if self._module is not module:
            self._module, self.reports = module, {}
        # A second fit of the same module on the same data goes on: what was trained beside it stays, as its weights do.
        now = (module, getattr(trainer, "datamodule", None))
        self._goes_on = self._prepared_for is not None and all(map(operator.is_, self._prepared_for, now))
        if stage == "fit" and not self._goes_on:
            self._prepare(trainer, module)
            self._prepared_for = now

    def _prepare(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for defence in self.defences:
            defence.prepare(trainer, module)

    def _intercept(self, module: L.LightningModule) -> None:
        if self.in_slot(Slot.OBJECTIVE):
            if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
                raise DefenceConflictError(
                    f"`{self.in_slot(Slot.OBJECTIVE)[0].name}` works on batches, but `{type(module).__name__}."
                    "training_step` takes a `dataloader_iter`. Write it as `training_step(self, batch, batch_idx)`."
                )
            # Lightning looks at the signature to decide what to pass, and sees that of the patch.
            self._wants_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        for method, (slot, patch) in _PATCHES.items():
            if slot is not None and not self.in_slot(slot):
                continue
            if method in module.__dict__:
                self._originals[method] = module.__dict__[method]
            module.__dict__[method] = MethodType(patch, module)
        _INSTALLED[module] = self

    def _check_averaging(self, trainer: L.Trainer) -> None:
        surgeons = self.in_slot(Slot.SURGERY)
        callbacks: list[L.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        for place, callback in enumerate(callbacks if surgeons else []):
            name = type(callback).__name__
            if isinstance(callback, StochasticWeightAveraging):
                raise DefenceConflictError(
                    f"`{surgeons[0].name}` changes the model's layers after {name} has copied them: the average would "
                    "be of another model. Use `EMAWeightAveraging` or `WeightAveraging`, listed after the defences."
                )
            if isinstance(callback, WeightAveraging) and place < callbacks.index(self.leader):
                raise DefenceConflictError(
                    f"{name} copies the model before `{surgeons[0].name}` changes its layers: the average would be of "
                    f"another model. List {name} after the defences."
                )

    def uninstall(self, module: L.LightningModule) -> None:
        """Give the module its own methods back."""
        if _INSTALLED.get(module) is not self:
            return
        for method in _PATCHES:
            module.__dict__.pop(method, None)
        module.__dict__.update(self._originals)
        self._originals.clear()
        del _INSTALLED[module]

    def _original(self, module: L.LightningModule, method: str) -> Callable[..., Any]:
        return self._originals.get(method) or MethodType(getattr(type(module), method), module)

    def configure_model(self, module: L.LightningModule) -> None:
        """Run the user's ``configure_model``, then every surgery."""
        self._original(module, "configure_model")()
        for defence in self.in_slot(Slot.SURGERY):
            report = defence.surgery(module)
            if not report.layers:
                raise NoEffectError(
                    f"`{defence.name}` matched no layer of {type(module).__name__}: nothing would be defended. "
                    "Name layers that exist (see `named_modules()`), or build them in `__init__` or `configure_model`."
                )
            self.reports[defence.name] = report

    def check_fit(self, caller: Defence, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Check the optimizers, and that every surgery has been done."""
        if caller is not self.leader:
            return
        raise_conflicts(find_conflicts(self.defences, environment_of(trainer, module)))
        for defence in self.in_slot(Slot.SURGERY):
            if defence.name not in self.reports:
                raise NoEffectError(
                    f"`{defence.name}` never reached the layers of {type(module).__name__}: `configure_model` did not run. "
                    "Another callback or strategy replaced it; remove that one."
                )

    def training_step(self, module: L.LightningModule, *args: Any, **kwargs: Any) -> Any:
        """Run the user's step once, then every objective."""
        self._intercepted = True
        batch = args[0] if args else kwargs.get("batch")
        batch_idx = args[1] if len(args) > 1 else kwargs.get("batch_idx", 0)
        if not self._wants_index:
            args, kwargs = args[:1], {k: v for k, v in kwargs.items() if k != "batch_idx"}
        outputs = self._original(module, "training_step")(*args, **kwargs)
        if outputs is None or (not isinstance(outputs, Tensor) and outputs.get("loss") is None):
            return outputs  # the user skips this batch, or Lightning will say what is wrong with it
        plain = isinstance(outputs, Tensor)
        mapping = {"loss": outputs} if plain else dict(outputs)
        step = Step(module.trainer, module, batch, int(batch_idx), mapping, mapping["loss"])
        for defence in self.in_slot(Slot.OBJECTIVE):
            step.loss = defence.objective(step)
        if plain:
            return step.loss
        # The errors' graph has served its purpose; what is returned travels to every callback.
        shared = {"per_sample_error": step.shared_error.detach()} if isinstance(step.shared_error, Tensor) else {}
        return {**mapping, **shared, "loss": step.loss}

    def transform_gradients(self, caller: Defence, module: L.LightningModule, optimizer: Optimizer) -> None:
        """Run the gradient slot."""
        if caller is self.leader:
            self._stepped = True
            for defence in self.in_slot(Slot.GRADIENT):
                defence.transform_gradients(module, optimizer)

    def after_step(self, caller: Defence, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Run the post-step slot, if this batch ended in an optimizer step; check that the objectives were asked."""
        if caller is not self.leader:
            return
        if self.in_slot(Slot.OBJECTIVE) and not self._intercepted:
            raise NoEffectError(
                f"`{self.in_slot(Slot.OBJECTIVE)[0].name}` was never asked for the loss: something replaced "
                f"`training_step` of this {type(module).__name__} after the defence was set up. List the defence after "
                "that callback, or do it in the module's `__init__`."
            )
        stepped, self._stepped, self._intercepted = self._stepped, False, False
        for defence in self.in_slot(Slot.POST_STEP) if stepped else []:
            defence.after_step(trainer, module)

    def save_checkpoint(self, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Run the user's hook, then add the manifest (this hook also runs for weights-only checkpoints)."""
        self._original(module, "on_save_checkpoint")(checkpoint)
        write_manifest(checkpoint, self.defences, self.reports)

    def write_manifest(self, caller: Defence, checkpoint: dict[str, Any]) -> None:
        """Add the manifest to a whole checkpoint."""
        if caller is self.leader:
            write_manifest(checkpoint, self.defences, self.reports)

    def load_checkpoint(self, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint with other surgery than this run's, then run the user's hook."""
        check_manifest(checkpoint, self.defences, self.reports)
        if self._goes_on and module.trainer.state.fn == TrainerFn.FITTING:
            self._prepare(module.trainer, module)  # the checkpoint's state comes next, and wants untouched defences
        self._original(module, "on_load_checkpoint")(checkpoint)


def environment_of(trainer: L.Trainer, module: L.LightningModule) -> Environment:
    """Read from a trainer what defences care about."""
    launcher = trainer.strategy.launcher
    spawned = launcher is not None and "MultiProcessing" in type(launcher).__name__
    strategy = type(trainer.strategy).__name__
    return Environment(
        strategy=f"{strategy} (ddp_spawn)" if spawned else strategy,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        automatic_optimization=module.automatic_optimization,
        optimizers=tuple(type(o).__name__ for o in trainer.strategy.optimizers),
        module_breaks=_module_breaks(module),
    )


def _module_breaks(module: L.LightningModule) -> dict[Property, str]:
    mixing = [f"{type(m).__name__} `{name}`" for name, m in module.named_modules() if isinstance(m, _BatchNorm)]
    return {Property.NO_CROSS_SAMPLE_LAYERS: mixing[0]} if mixing else {}
