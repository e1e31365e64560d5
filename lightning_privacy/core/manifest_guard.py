"""The guard of runs without a defence: no defended checkpoint is continued by accident as an undefended one."""

from types import MethodType
from typing import Any

import lightning.pytorch as L

from lightning_privacy.core.manifest_record import check_manifest

__all__ = ["ManifestGuard"]


class ManifestGuard(L.Callback):
    """Refuse to load a checkpoint whose defences did surgery that this run does not do.

    For runs without any defence; a run with one has the same check in its stack, and there the guard stands back.
    Callbacks hear of a checkpoint only after its weights were loaded (or failed to load), so the check hangs on the
    module's own ``on_load_checkpoint``, on the instance, until the run ends.
    """

    def __init__(self) -> None:
        self._before: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Hang the check on the module."""
        if self._before is None and not _has_defence(trainer):
            self._before = {k: v for k, v in pl_module.__dict__.items() if k == "on_load_checkpoint"}
            pl_module.__dict__["on_load_checkpoint"] = MethodType(_checked(self._before), pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the check off."""
        self._release(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the check off."""
        self._release(pl_module)

    def _release(self, module: L.LightningModule) -> None:
        if self._before is not None:
            module.__dict__.pop("on_load_checkpoint", None)
            module.__dict__.update(self._before)
            self._before = None


def _has_defence(trainer: L.Trainer) -> bool:
    from lightning_privacy.core.defence import Defence

    return any(isinstance(c, Defence) for c in trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]


def _checked(before: dict[str, Any]) -> Any:
    own = before.get("on_load_checkpoint")

    def on_load_checkpoint(self: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        check_manifest(checkpoint, ())
        if own is not None:
            own(checkpoint)
        else:
            type(self).on_load_checkpoint(self, checkpoint)

    return on_load_checkpoint
