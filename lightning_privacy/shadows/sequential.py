"""Training one shadow model by Lightning, as the target is trained."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.core.ranks import alone
from lightning_privacy.errors import InputError
from lightning_privacy.shadows.build import Build, build_shadow, seeded
from lightning_privacy.shadows.shadow_split import ShadowSplit

__all__ = ["check_trainer", "copied_state", "quiet", "shadow_trainer", "train_one", "training_seed"]

SILENT: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Check that the arguments describe one device and nothing that the shadows set themselves.

    Raises:
        InputError: they do not.
    """
    if taken := sorted(set(trainer) & {"logger", "enable_checkpointing", "strategy", "num_nodes", "fast_dev_run"}):
        raise InputError(
            f"`trainer` of ShadowPool holds {', '.join(taken)}: a shadow model trains on one device, without loggers "
            "or checkpoints. Leave these out."
        )
    devices = trainer.get("devices", 1)
    if devices not in (1, "1", "auto") and not (isinstance(devices, list) and len(devices) == 1):
        raise InputError(
            f"`trainer` of ShadowPool asks for devices={devices!r}, but a shadow model trains on one; the ranks of a "
            "process group, or the jobs of `ShadowPool.train(share=(i, n))`, train different ones at the same time."
        )


def training_seed(seed: int) -> int:
    """Return the seed of the global random state in which a shadow model is trained."""
    return derive_seed("shadow training", seed) % 2**31


def shadow_trainer(arguments: Mapping[str, Any], callbacks: Sequence[L.Callback], folder: Path) -> L.Trainer:
    """Return a silent trainer on one device.

    Args:
        arguments: Of `Trainer`; its callbacks are copied, so that no shadow sees another's.
        callbacks: Further ones.
        folder: Its root folder; nothing is written by default.
    """
    given = copy.deepcopy(dict(arguments))
    own = given.pop("callbacks", None) or []
    every = [*callbacks, *(own if isinstance(own, list) else [own])]
    devices = given.pop("devices", 1)
    if devices in (1, "1", "auto"):
        devices = _one_device(str(given.get("accelerator", "auto")))
    silent = {**SILENT, "default_root_dir": str(folder), **given, "devices": devices}
    with quiet():
        return L.Trainer(**silent, callbacks=every)


def _one_device(accelerator: str) -> int | list[int]:
    together = dist.is_available() and dist.is_initialized()
    if together and torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        # All ranks of a node would otherwise train on its first GPU.
        return [dist.get_rank() % torch.cuda.device_count()]
    return 1


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's greetings, which would come once a shadow model."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def train_one(build: Build, split: ShadowSplit, trainer: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Train one shadow model and return its state; a function of the arguments, and no part of any process group.

    Args:
        build: Makes module and defences from a seed.
        split: Its data.
        trainer: Arguments of its trainer.
        seed: Of the module and of the global random state in training.
        folder: Root folder of its trainer.
    """
    with alone():
        module, callbacks = build_shadow(build, seed)
        running = shadow_trainer(trainer, callbacks, folder)
        with seeded(training_seed(seed)), quiet():
            running.fit(module, datamodule=split)
        if running.interrupted:  # Lightning returns as if it had finished
            raise KeyboardInterrupt
    return copied_state(module)


def copied_state(module: L.LightningModule) -> dict[str, Any]:
    """Return a module's state, tensors copied to the CPU."""
    state: dict[str, Any] = module.state_dict()
    return {name: each.detach().cpu().clone() if isinstance(each, Tensor) else each for name, each in state.items()}
