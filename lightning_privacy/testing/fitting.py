"""Short, silent training runs for tests, and what is compared between them."""

import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor

__all__ = ["Fitted", "compare", "fit", "quiet", "random_state", "state_of", "trainer"]

# Advice about speed and logging that means nothing in a run of a few steps.
_ADVICE = (
    "does not have many workers",
    "is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",
    "You're resuming from a checkpoint that ended before the epoch ended",
    "You have not specified an optimizer or scheduler within the DeepSpeed config",
    "Experiment logs directory .* exists and is not empty",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's greetings and its advice, and nothing else."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for advice in _ADVICE:
            warnings.filterwarnings("ignore", message=f".*{advice}")
        try:
            yield
        finally:
            log.setLevel(level)


def trainer(folder: Path | str, callbacks: Sequence[L.Callback] = (), **options: Any) -> L.Trainer:
    """Return a silent trainer on one CPU process that checks no validation data beforehand.

    Args:
        folder: Its root folder.
        callbacks: Its callbacks.
        **options: Further arguments of Trainer, which override these.
    """
    silent: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 1,
    }
    with quiet():
        return L.Trainer(default_root_dir=str(folder), callbacks=list(callbacks), **{**silent, **options})


class Fitted:
    """A finished run.

    Args:
        trainer: Its trainer.
        module: Its module.
        random_state: The global random state right after it.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, random_state: list[Any]) -> None:
        self.trainer, self.module, self.random_state = trainer, module, random_state

    @property
    def weights(self) -> dict[str, Tensor]:
        """The module's state."""
        return {k: v.detach().clone() for k, v in self.module.state_dict().items()}


def fit(
    folder: Path | str,
    module: L.LightningModule,
    data: L.LightningDataModule,
    callbacks: Sequence[L.Callback] = (),
    *,
    seed: int = 0,
    ckpt_path: Path | str | None = None,
    **options: Any,
) -> Fitted:
    """Train, from a fixed global random state.

    Args:
        folder: Root folder.
        module: The module.
        data: The datamodule.
        callbacks: Callbacks.
        seed: Of the global random state.
        ckpt_path: Checkpoint to continue from.
        **options: Of `trainer`.
    """
    running = trainer(folder, callbacks, **options)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the global state is what user code draws from
    torch.manual_seed(seed)
    with quiet():
        running.fit(module, data, ckpt_path=None if ckpt_path is None else str(ckpt_path), weights_only=True)
    return Fitted(running, module, random_state())


def random_state() -> list[Any]:
    """Return the global random states of torch and numpy; not Python's own, from which a run-time type checker draws."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return [torch.get_rng_state(), name, torch.from_numpy(np.asarray(keys)), rest]


def state_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a checkpoint must be equal after an interruption: weights, optimizers, callbacks, data, counters."""
    callbacks = {k: v for k, v in checkpoint["callbacks"].items() if not k.startswith("ModelCheckpoint")}
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {**{k: checkpoint[k] for k in names}, "callbacks": callbacks}


def compare(here: Any, there: Any, where: str = "", tolerance: float = 0.0) -> list[str]:
    """Return the places at which two nests of tensors and plain values differ.

    Args:
        here: One.
        there: The other.
        where: Path of the two, for the texts.
        tolerance: Largest difference of tensors, relative to the largest entry of the second; 0 for bit equality.

    Example:
        >>> compare({"a": [1, 2]}, {"a": [1, 3]})
        ['/a/1: 2 and 3']
    """
    if isinstance(here, Tensor) and isinstance(there, Tensor):
        if here.shape != there.shape or here.dtype != there.dtype:
            return [f"{where}: {here.dtype}{tuple(here.shape)} and {there.dtype}{tuple(there.shape)}"]
        if torch.equal(here, there):
            return []
        gap = (here.double() - there.double()).abs().max().item()
        return [f"{where}: differ by {gap:.3g}"] if not gap <= tolerance * there.double().abs().max().item() else []
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        alone = [f"{where}/{k}: only on one side" for k in set(here) ^ set(there)]
        return alone + [d for k in here if k in there for d in compare(here[k], there[k], f"{where}/{k}", tolerance)]
    if isinstance(here, list | tuple) and isinstance(there, list | tuple):
        if len(here) != len(there):
            return [f"{where}: {len(here)} and {len(there)} entries"]
        return [
            d
            for i, (a, b) in enumerate(zip(here, there, strict=True))
            for d in compare(a, b, f"{where}/{i}", tolerance)
        ]
    return [] if here == there else [f"{where}: {here!r} and {there!r}"]
