"""Why several shadow models of a kind cannot be trained at once, in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_privacy.errors import InputError
from lightning_privacy.protocols import HasFunctionalLoss

__all__ = ["CannotStack", "check_optimizer", "why_not"]

# Their step treats every number of a tensor by itself, so that stacked tensors step as separate ones do.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adadelta,
)
PRECISIONS = (None, 32, "32", "32-true", "bf16-mixed")
_KNOWN = {
    *("max_epochs", "max_steps", "precision", "gradient_clip_val", "gradient_clip_algorithm", "accelerator"),
    *("devices", "limit_train_batches", "limit_val_batches", "num_sanity_val_steps", "val_check_interval"),
    *("check_val_every_n_epoch", "deterministic", "benchmark", "log_every_n_steps", "default_root_dir"),
    *("enable_progress_bar", "enable_model_summary", "accumulate_grad_batches", "inference_mode"),
}
# What Lightning calls around a training step; validation is left out, because here nothing depends on it.
_HOOKS = (
    *("setup", "configure_callbacks", "configure_gradient_clipping", "backward", "manual_backward"),
    *("optimizer_step", "optimizer_zero_grad", "lr_scheduler_step", "toggle_optimizer"),
    *("on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end"),
    *("on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_before_zero_grad"),
    *("transfer_batch_to_device", "on_after_batch_transfer"),
)
_DATA_HOOKS = ("transfer_batch_to_device", "on_after_batch_transfer")


class CannotStack(InputError):  # noqa: N818  # raised where the user asked for what cannot be
    """These shadow models cannot be trained at once; the message says why."""


def why_not(
    module: L.LightningModule,
    callbacks: Sequence[L.Callback],
    data: L.LightningDataModule,
    trainer: Mapping[str, Any],
) -> str | None:
    """Return the reason against training copies of a module at once, or None.

    Args:
        module: As built.
        callbacks: Its defences and other callbacks.
        data: Its split.
        trainer: Arguments of its trainer.

    Example:
        >>> why_not(L.LightningModule(), [], L.LightningDataModule(), {})
        'LightningModule has no `functional_loss`'
    """
    name = type(module).__name__
    if not isinstance(module, HasFunctionalLoss):
        return f"{name} has no `functional_loss`"
    if callbacks:
        who = getattr(callbacks[0], "name", "") or type(callbacks[0]).__name__
        return f"`{who}` acts in the training of each model by itself"
    if not module.automatic_optimization:
        return f"{name} optimizes by hand (`automatic_optimization` is False)"
    for owner, hooks in ((module, _HOOKS), (data, _DATA_HOOKS)):
        if overridden := [hook for hook in hooks if is_overridden(hook, owner)]:
            return f"{type(owner).__name__}.{overridden[0]} would not be called"
    if unknown := sorted(set(trainer) - _KNOWN):
        return f"the trainer argument `{unknown[0]}` has no counterpart there"
    if trainer.get("precision") not in PRECISIONS:
        return f"precision {trainer['precision']!r} is not one of 32-true and bf16-mixed"
    if trainer.get("accumulate_grad_batches", 1) != 1:
        return "gradients are accumulated over batches"
    return None


def check_optimizer(optimizers: Sequence[Any], schedulers: Sequence[Any]) -> None:
    """Check that one optimizer over stacked tensors does what one a model does.

    Args:
        optimizers: As Lightning set them up.
        schedulers: Lightning's descriptions of the learning-rate schedulers.

    Raises:
        CannotStack: it does not, or nobody can tell.
    """
    if len(optimizers) != 1:
        raise CannotStack(f"the module has {len(optimizers)} optimizers instead of one")
    kind = type(optimizers[0])
    if kind not in ELEMENTWISE:
        known = ", ".join(each.__name__ for each in ELEMENTWISE)
        raise CannotStack(f"{kind.__name__} is not one of the elementwise optimizers ({known})")
    if optimizers[0].state:
        raise CannotStack(f"{kind.__name__} keeps a state before its first step")
    if any(each.reduce_on_plateau for each in schedulers):
        raise CannotStack("ReduceLROnPlateau reads a validation metric of each model")
