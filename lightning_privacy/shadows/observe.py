"""Looking at records through one trained shadow model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_privacy.attacks.membership.scaled_confidence import scaled_confidence
from lightning_privacy.callbacks.audits.class_scores import class_scores
from lightning_privacy.callbacks.audits.untouched import untouched
from lightning_privacy.core.batches import labels_of
from lightning_privacy.core.ranks import alone
from lightning_privacy.datamodules.resumable_loader import FixedLoader
from lightning_privacy.errors import MissingProtocolError
from lightning_privacy.shadows.build import Build, build_shadow, rebuild_layers, seeded
from lightning_privacy.shadows.sequential import shadow_trainer, training_seed
from lightning_privacy.shadows.shadow_split import ShadowSplit

__all__ = ["observe_one"]

AT_ONCE = 256  # records a batch, chosen here: weights and their gradients are not in memory, so larger than in training


def observe_one(
    build: Build,
    seed: int,
    state: Mapping[str, Tensor],
    split: ShadowSplit,
    indices: Sequence[int],
    trainer: Mapping[str, Any],
    queries: int,
    folder: Path,
) -> Float[Tensor, "records queries"]:
    """Return the scaled confidence of a shadow model in the true class of records, raw and in augmented views.

    Args:
        build: Makes the module.
        seed: Of this shadow model.
        state: Its trained state.
        split: Its data.
        indices: Dataset indices of the records.
        trainer: Arguments of its trainer: device and precision are as in training.
        queries: Views of each record; see `query_views`.
        folder: Root folder of the trainer.

    Raises:
        MissingProtocolError: the module has no ``logits``.
        InputError: its class scores or the batches have another shape than needed.
    """
    with alone():
        module, callbacks = build_shadow(build, seed)
        if not callable(getattr(module, "logits", None)):
            raise MissingProtocolError(
                f"Shadow models are observed through `{type(module).__name__}.logits(batch)`, which does not exist. "
                "Return the class scores before the softmax from it, one row a record."
            )
        with seeded(training_seed(seed)):
            rebuild_layers(module, callbacks)
        module.load_state_dict(state)
        running = shadow_trainer(trainer, [], folder)
        running.strategy.precision_plugin.convert_module(module)
        module.trainer = running
        module.to(running.strategy.root_device)
        split.trainer = running
        loader = FixedLoader(split.read(indices), batch_size=AT_ONCE, **split.pool.options)
        found = []
        with untouched(module):
            for raw in loader:
                batch = _transferred(module, split, raw)
                found.append(scaled_confidence(class_scores(module, batch, queries), labels_of(batch).cpu()))
    return torch.cat(found)


def _transferred(module: L.LightningModule, split: L.LightningDataModule, batch: Any) -> Any:
    """Do what Lightning does between a loader and a step; the datamodule's own hooks come before the module's."""

    def owner(hook: str) -> Any:
        return getattr(split if is_overridden(hook, split) else module, hook)

    batch = owner("on_before_batch_transfer")(batch, 0)
    batch = owner("transfer_batch_to_device")(batch, module.device, 0)
    return owner("on_after_batch_transfer")(batch, 0)
