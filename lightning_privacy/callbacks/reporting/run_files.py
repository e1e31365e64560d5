"""Keeps what a run is about in its folder: the split record when training starts, the adapter when it ends."""

import json
from typing import Any

import lightning.pytorch as L

from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import SplitError

__all__ = ["RunFiles"]


class RunFiles(L.Callback):
    """Writes ``split.json`` and ``adapter/`` where the datamodule has ``write_split`` and the module ``save_adapter``.

    Raises:
        SplitError: the folder is of a run on another split; its results would be mixed with this one's.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the split record, on rank zero."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        if not hasattr(datamodule, "write_split"):
            return
        run = RunFolder(trainer.default_root_dir)
        before = json.loads(run.split.read_text(encoding="utf-8")).get("split_hash") if run.split.is_file() else None
        # all ranks decide alike before rank zero writes
        before = trainer.strategy.broadcast(before)
        now = datamodule.split_hash
        if before not in (None, now):
            raise SplitError(
                f"{run.path} holds a run on split {before[:12]}, this one's is {now[:12]}: other records are members. "
                "Give this run a folder of its own (--run_name), or use that run's data, split_seed and fractions."
            )
        if trainer.is_global_zero and before is None:
            datamodule.write_split(run.split)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export the adapter, on rank zero."""
        save: Any = getattr(pl_module, "save_adapter", None)
        if trainer.is_global_zero and save is not None:
            save(RunFolder(trainer.default_root_dir).adapter)
