"""Keeps what a run is about in its folder: the split record when training starts, the adapter when it ends."""

import itertools
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import SplitError

__all__ = ["RunFiles", "set_aside"]


class RunFiles(L.Callback):
    """Writes ``split.json`` and ``adapter/`` where the datamodule has ``write_split`` and the module ``save_adapter``.

    A training that starts anew in the folder of an earlier one sets the earlier one's results, measurements and metrics
    aside (``results-1.jsonl`` and so on), so that nothing measured on the old model is taken for the new one's.

    Raises:
        SplitError: the folder is of a run on another split; its results would be mixed with this one's.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the split record and set an earlier training's results aside, on rank zero."""
        run = RunFolder(trainer.default_root_dir)
        datamodule: Any = getattr(trainer, "datamodule", None)
        if hasattr(datamodule, "write_split"):
            _keep_split(trainer, run, datamodule)
        if trainer.is_global_zero and _starts_anew(trainer):
            set_aside(run)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export the adapter, on rank zero."""
        save: Any = getattr(pl_module, "save_adapter", None)
        if trainer.is_global_zero and save is not None:
            save(RunFolder(trainer.default_root_dir).adapter)


def set_aside(run: RunFolder) -> list[Path]:
    """Rename what an earlier training left behind, all files to the same first free number, and say so in one line.

    Args:
        run: The folder.

    Returns:
        The new places; empty where there was nothing.
    """
    kept = (run.results_file, run.measurements_file, run.metrics)
    if not any(path.is_file() for path in kept[:2]):
        return []
    number = next(k for k in itertools.count(1) if not any(_numbered(path, k).exists() for path in kept))
    there = [path for path in kept if path.is_file()]
    places = [_numbered(path, number) for path in there]
    for path, place in zip(there, places, strict=True):
        path.rename(place)
    rank_zero_info(
        f"{run.path} holds an earlier training: what was measured on it is kept as "
        f"{', '.join(place.name for place in places)}"
    )
    return places


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _starts_anew(trainer: L.Trainer) -> bool:
    """Return whether weights are about to be trained from their start; an audit of a finished model is no training."""
    # The step of a checkpoint is restored after this hook: a resume is known by its checkpoint.
    return trainer.state.fn == TrainerFn.FITTING and trainer.global_step == 0 and trainer.ckpt_path is None


def _keep_split(trainer: L.Trainer, run: RunFolder, datamodule: Any) -> None:
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
