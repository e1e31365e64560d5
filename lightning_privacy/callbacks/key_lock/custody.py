"""What both defences do with their secrets in a run: keep them out of checkpoints, and find them again."""

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lightning_privacy.callbacks.key_lock.keeping import (
    fetch_layers,
    fetch_optimizer,
    keep_layers,
    keep_optimizer,
    layers_fingerprint,
    optimizer_fingerprint,
    states_folder,
)
from lightning_privacy.callbacks.key_lock.start import private_norms
from lightning_privacy.core.manifest_record import read_manifest
from lightning_privacy.errors import DefenceConflictError, InputError, WrongKeyError
from lightning_privacy.secrets.optimizer_state import join_optimizer_states, split_optimizer_states

__all__ = ["Custody", "two_marks", "wrong_key"]


def two_marks(fingerprint: str) -> tuple[str, str]:
    """Return the fingerprints of the key and of the private layers from a manifest's entry.

    Args:
        fingerprint: ``key/layers``; the first is empty where there is no key.
    """
    key, _, layers = fingerprint.rpartition("/")
    return key, layers


def wrong_key(owner: str, theirs: str, place: str, own: str) -> WrongKeyError:
    """Return the error of a key that is another than a checkpoint's; it names fingerprints alone.

    Args:
        owner: The defence.
        theirs: Fingerprint of the checkpoint's key.
        place: Where the other key lies.
        own: Its fingerprint.
    """
    return WrongKeyError(
        f"`{owner}`: the checkpoint was locked with the key of fingerprint {theirs}, and that of {place} is {own}. Name the "
        "vault and the entry that the model was trained with."
    )


class Custody:
    """Keeps the private layers of one run; nothing secret is held here.

    Args:
        owner: Name of the defence.
        place: A vault's file, or a folder; None keeps nothing.
        how: How a user names a place, for errors.
    """

    def __init__(self, owner: str, place: Path | None, how: str) -> None:
        self.owner, self.place, self.how = owner, place, how
        self.key_mark = ""
        self.active = self._writes = self._told = self._filled = False
        self._module: weakref.ref[L.LightningModule] | None = None
        self._resumed: tuple[dict[str, Any], str] | None = None

    @property
    def folder(self) -> Path | None:
        """Where states lie."""
        return None if self.place is None else states_folder(self.place)

    def begin(self, trainer: L.Trainer) -> None:
        """Note who writes, and refuse what would save other layers than the run's.

        Raises:
            DefenceConflictError: a callback averages weights.
        """
        self.active, self._writes = True, trainer.is_global_zero
        callbacks: list[L.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        for callback in callbacks:
            if isinstance(callback, WeightAveraging):
                raise DefenceConflictError(
                    f"{type(callback).__name__} saves averaged public weights, and `{self.owner}` keeps the private layers of "
                    "the current ones: a checkpoint would be of two models. Leave one of them out."
                )

    def of(self, module: L.LightningModule) -> None:
        """Take a module's private layers into custody; say once if they will be kept nowhere."""
        self._module = weakref.ref(module)
        if self.place is None and not self._told:
            self._told = True
            rank_zero_info(
                f"`{self.owner}` keeps its secrets in memory alone: when this process ends, no checkpoint of the run can be "
                f"continued or used. To keep them, name a place: {self.how}."
            )

    def marks(self) -> str | None:
        """Keep the layers as they are now, and return the fingerprints for the manifest; None before there are any.

        Lightning tells no callback of a weights-only checkpoint, so that asking for this is what keeps its layers.
        """
        module = None if self._module is None else self._module()
        if module is None or not private_norms(module):
            return None
        mark = layers_fingerprint(module)
        if self.folder is not None and self._writes:
            keep_layers(module, self.folder, self.place)
        return f"{self.key_mark}/{mark}"

    def save(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any], state: str) -> None:
        """Take the optimizers' memory of the private layers out of a checkpoint and keep it.

        Args:
            trainer: The trainer.
            module: The module.
            checkpoint: A whole checkpoint; changed in place.
            state: The defence's ``state_key``.
        """
        clean, private = split_optimizer_states(checkpoint, module, trainer.optimizers)
        if "optimizer_states" not in checkpoint:
            return
        checkpoint["optimizer_states"] = clean["optimizer_states"]
        checkpoint.setdefault("callbacks", {}).setdefault(state, {})["optimizer"] = optimizer_fingerprint(private)
        if self.folder is not None and self._writes:
            keep_optimizer(private, self.folder, self.place)

    def load(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any], state: str) -> None:
        """Fill the private layers of a run that goes on; its optimizers do not exist yet.

        Raises:
            InputError: what the checkpoint needs was not kept, or is not where it was.
            WrongKeyError: it was locked with another key.
        """
        self.fill(module, checkpoint)
        self._filled = True
        mark = checkpoint.get("callbacks", {}).get(state, {}).get("optimizer")
        if mark is not None and trainer.state.fn == TrainerFn.FITTING:
            self._resumed = checkpoint, mark  # Lightning reads this dictionary again when it restores the optimizers

    def fill(self, module: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Put those layers into a module that belong to a checkpoint.

        Raises:
            InputError: they were not kept, or are not where they were.
            WrongKeyError: they were locked with another key than this run's.
        """
        manifest = read_manifest(checkpoint) or {"defences": {}}
        key, mark = two_marks(manifest["defences"].get(self.owner, {}).get("key_fingerprint") or "")
        layers = private_norms(module)
        if self.place is not None and key and self.key_mark and key != self.key_mark:
            raise wrong_key(self.owner, key, str(self.place), self.key_mark)
        if not mark or (mark == layers_fingerprint(module) and not any(layer.is_locked for layer in layers.values())):
            return
        if self.folder is None:
            raise InputError(
                f"The checkpoint holds neither scale nor shift of {', '.join(layers)}, which `{self.owner}` keeps private, and "
                f"the run names no place where they were kept: they are lost, and so is the optimizer's memory of them. Name "
                f"the place ({self.how}), or train anew."
            )
        fetch_layers(module, self.folder, mark)

    def join(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put the optimizers' memory back before Lightning restores them, and check that nothing is locked.

        Raises:
            InputError: a layer is locked, or the memory is not where it was.
        """
        self.check_unlocked(module)
        self._filled = False
        if self._resumed is not None:
            (checkpoint, mark), self._resumed = self._resumed, None
            if self.folder is None:
                raise InputError(
                    f"The optimizer's memory of the private layers was not kept. Name the place ({self.how})."
                )
            private = fetch_optimizer(self.folder, mark)
            checkpoint |= join_optimizer_states(checkpoint, private, module, trainer.optimizers)

    def evaluate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Unlock a module that is validated, tested or used from a checkpoint without being trained.

        Raises:
            InputError: its layers cannot be found.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            return
        if (
            trainer.ckpt_path is not None and not self._filled
        ):  # Lightning tells no callback of weights-only checkpoints
            self.fill(module, torch.load(trainer.ckpt_path, map_location="cpu", weights_only=True, mmap=True))
        self._filled = False
        self.check_unlocked(module)

    def check_unlocked(self, module: L.LightningModule) -> None:
        """Refuse to run a module with random numbers in place of its secrets.

        Raises:
            InputError: a layer is locked.
        """
        if closed := [name for name, layer in private_norms(module).items() if layer.is_locked]:
            raise InputError(
                f"Scale and shift of {', '.join(closed)} are locked: random numbers stand in their place. Load the model with "
                f"`load_defended(module, path, vault=...)`, or name the place where they were kept ({self.how})."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_module": None, "_resumed": None}
