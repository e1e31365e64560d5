"""Bringing a model to its device by a Trainer, without validating it."""

from typing import Any

from torch.utils.data import DataLoader

__all__ = ["without_validation"]

_HOOKS = (
    "validation_step",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
)


def without_validation(module: Any, datamodule: Any) -> None:
    """Let ``Trainer.validate`` set up and place a module, and run callbacks, while nothing of it is validated.

    A Trainer hands a placed model to callbacks only on the way to its batches. An audit wants no batch: the data may
    have no validation set, the module no ``validation_step``, and its own hooks would count metrics of nothing.

    Args:
        module: The module; its own validation hooks do nothing from now on.
        datamodule: Its data, whose validation loader becomes one number; None where the module has the loaders.
    """
    for hook in _HOOKS:
        setattr(module, hook, _nothing)
    owner = module if datamodule is None else datamodule
    owner.val_dataloader = _one_number


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _one_number() -> DataLoader[int]:
    return DataLoader([0])  # pyright: ignore[reportArgumentType]
