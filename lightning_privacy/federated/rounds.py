"""A client's part of one round: train or evaluate with Lightning, between what was received and what is sent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from lightning_privacy.core.batches import has_labels, labels_of
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.errors import InputError, NonFiniteLossError
from lightning_privacy.federated.private_state import PrivateState
from lightning_privacy.federated.shared import Local, load_shared, local_names, read_shared, shared_names

__all__ = ["METRICS", "ClientParts", "Reply", "evaluate_round", "train_round"]

METRICS = ("val/loss", "val/accuracy")
"""What a client tells of an evaluation, beside the number of its records."""
_QUIET: Mapping[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
}


@dataclass
class ClientParts:
    """What a client trains with; made anew for each round.

    Args:
        module: Any LightningModule.
        datamodule: Any LightningDataModule; its validation data are what the client is evaluated on.
        defences: Defences and further callbacks of the client's trainer.
        trainer: Arguments of the trainer, such as ``accelerator``; a round ends after ``max_epochs`` epochs (1).
        local: What is not shared beside the secrets, see `local_names`.
        metrics: What an evaluation tells the server, as the module logs it.
        seed: Of this client's random draws.
    """

    module: L.LightningModule
    datamodule: L.LightningDataModule
    defences: Sequence[L.Callback] = ()
    trainer: Mapping[str, Any] = field(default_factory=dict)
    local: Local = "none"
    metrics: Sequence[str] = METRICS
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """What a round sends.

    Args:
        arrays: Shared tensors by name; empty after an evaluation.
        metrics: Numbers by name; ``num-examples`` is the weight in averages.
    """

    arrays: Mapping[str, Tensor]
    metrics: Mapping[str, float]


def train_round(parts: ClientParts, received: Mapping[str, Tensor], private: PrivateState, number: int) -> Reply:
    """Train on what was received, with the client's secrets as they were after its last round, and keep them.

    The optimizer starts anew, for its memory of the shared weights belongs to weights that are no more; what it remembers
    of secrets goes on, as they do. A learning-rate schedule starts anew too. Epochs are counted through the rounds, so that
    orders, augmentations and keys that depend on the epoch go on.

    Args:
        parts: The client's.
        received: What the server sent.
        private: The client's private state.
        number: Of the round, from 1.

    Returns:
        Shared weights, the number of records that were trained on, and the mean loss.

    Raises:
        InputError: the server sent other tensors than the client shares, or the client has no records.
        NonFiniteLossError: the loss became NaN or infinite; nothing is sent, and the private state stays as it was.
    """
    epochs = int(parts.trainer.get("max_epochs") or 1)
    if epochs < 1:
        raise InputError(f"A round needs `max_epochs` of at least 1, and it is {epochs}. Give the epochs of one round.")
    before = (number - 1) * epochs
    round_ = _Round(parts, received, private, number)
    trainer = _trainer(parts, round_, {"max_epochs": before + epochs})
    progress: Any = trainer.fit_loop.epoch_progress.current  # as a resumed run has it
    progress.completed = progress.processed = before
    _seed(parts, "train", number)
    trainer.fit(parts.module, datamodule=parts.datamodule)
    arrays = read_shared(parts.module, shared_names(parts.module, parts.local))
    return Reply(arrays, {"num-examples": round_.records / epochs, "train/loss": round_.mean_loss()})


def evaluate_round(
    parts: ClientParts,
    received: Mapping[str, Tensor],
    private: PrivateState,
    number: int,
    checkpoint: Path | None = None,
) -> Reply:
    """Evaluate what was received with the client's own secrets; nothing is changed or kept.

    Args:
        parts: The client's.
        received: What the server sent.
        private: The client's private state.
        number: Of the round, from 1.
        checkpoint: Where the evaluated model is saved, without its secrets; None saves none.

    Returns:
        The number of records, and the metrics of `ClientParts.metrics`.

    Raises:
        InputError: the server sent other tensors than the client shares, there is nothing to validate, or a metric is absent.
    """
    round_ = _Round(parts, received, private, number, checkpoint)
    given = parts.trainer.get("limit_val_batches")
    trainer = _trainer(parts, round_, {"limit_val_batches": 1.0 if given is None else given})
    _seed(parts, "evaluate", number)
    trainer.validate(parts.module, datamodule=parts.datamodule, verbose=False)
    if not round_.records:
        raise InputError("The client has no validation data, so that nothing says how good the model is. Give it some.")
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if absent := [name for name in parts.metrics if name not in found]:
        raise InputError(
            f"{type(parts.module).__name__} logs no {', '.join(absent)} in validation; it logs {', '.join(found) or 'nothing'}."
            " Log it, or name other `metrics`."
        )
    return Reply({}, {"num-examples": float(round_.records), **{name: found[name] for name in parts.metrics}})


class _Round(L.Callback):
    """Puts received weights and private state into the module once it is built and placed, and counts."""

    def __init__(
        self,
        parts: ClientParts,
        received: Mapping[str, Tensor],
        private: PrivateState,
        number: int,
        checkpoint: Path | None = None,
    ) -> None:
        self.parts, self.received, self.private, self.number = parts, received, private, number
        self.checkpoint = checkpoint
        self.records, self.loss = 0, 0.0

    def _fill(self, module: L.LightningModule) -> None:
        self.private.restore(module)
        load_shared(module, self.received, shared_names(module, self.parts.local))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin where the server and the last round ended."""
        self._fill(pl_module)
        self.private.restore_optimizers(pl_module, trainer.optimizers)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count records and add up the loss."""
        size = _records(batch)
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        both = torch.tensor([float(size), float(loss) * size], device=pl_module.device)
        both = trainer.strategy.reduce(both, reduce_op="sum")
        self.records += int(both[0])
        self.loss += float(both[1])

    def mean_loss(self) -> float:
        """Return the mean loss over all records of all processes.

        Raises:
            InputError: there were none.
            NonFiniteLossError: it is no number.
        """
        if not self.records:
            raise InputError("The client trained on no record. Give it data, or leave it out of the federation.")
        loss = self.loss / self.records
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"The training loss of round {self.number} is {loss}. Nothing was sent. Lower the learning rate."
            )
        return loss

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what is private, before Lightning lets go of the optimizers."""
        self.mean_loss()
        if trainer.is_global_zero:
            local = local_names(pl_module, self.parts.local)
            self.private.keep(pl_module, trainer.optimizers, local, self.number)
        trainer.strategy.barrier("private state")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate what the server sent, with the client's own secrets."""
        if not trainer.training:
            self._fill(pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count records."""
        if not trainer.training:
            self.records += int(
                trainer.strategy.reduce(torch.tensor(_records(batch), device=pl_module.device), reduce_op="sum")
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save while the defences still tell the checkpoint of themselves."""
        if self.checkpoint is not None and not trainer.training:
            trainer.save_checkpoint(self.checkpoint, weights_only=True)


def _trainer(parts: ClientParts, round_: _Round, overrides: Mapping[str, Any]) -> L.Trainer:
    given = {name: value for name, value in parts.trainer.items() if value is not None}
    callbacks = given.pop("callbacks", None) or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    trainer = L.Trainer(**{**_QUIET, **given, **overrides, "callbacks": [*callbacks, *parts.defences, round_]})
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size > 1 and not getattr(environment, "creates_processes_externally", False):
        raise InputError(
            f"A round was asked to start {trainer.world_size} processes, each of which would be the engine's process again and "
            "answer the same message. Train on one device, or call `train_round` in processes that torchrun has started."
        )
    return trainer


def _records(batch: Any) -> int:
    """Return how many records a batch has; of one without labels Lightning's guess, from its first tensor."""
    return len(labels_of(batch)) if has_labels(batch) else extract_batch_size(batch)


def _seed(parts: ClientParts, what: str, number: int) -> None:
    """Seed the global random state: two rounds of one client, and two clients, draw differently."""
    torch.manual_seed(derive_seed("federated", what, parts.seed, number))
