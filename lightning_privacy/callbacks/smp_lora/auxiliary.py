"""The data side of SMP-LoRA: who is in the training batch, and the defence's own auxiliary batches."""

from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Bool, Int
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_privacy.callbacks.smp_lora.views import picture_place, with_views
from lightning_privacy.core.defence import Defence, Step
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.errors import NoEffectError

__all__ = ["AuxiliaryBatches"]


class AuxiliaryBatches:
    """Streams of auxiliary members and non-members, opened on the trainer's `MembershipSplit`.

    Args:
        defence: The `SMPLoRA` that owns it.
        trainer: Its datamodule must be a `MembershipSplit`.

    Raises:
        NoEffectError: the data is not wrapped in `MembershipSplit`.
    """

    def __init__(self, defence: Defence, trainer: L.Trainer) -> None:
        split = getattr(trainer, "datamodule", None)
        if not hasattr(split, "stream") or not hasattr(split, "train_indices"):
            raise NoEffectError(
                f"SMPLoRA needs to know members from non-members, but the data is {type(split).__name__}. Wrap it: "
                "`trainer.fit(module, MembershipSplit(your_datamodule))`, or `data: {class_path: MembershipSplit, ...}`."
            )
        self.split: Any = split
        self.trainer = trainer
        size: int = defence.aux_batch_size  # pyright: ignore[reportAttributeAccessIssue]
        seed = derive_seed(defence.seed, "auxiliary streams")  # pyright: ignore[reportAttributeAccessIssue]
        self._views: int = defence.aux_views  # pyright: ignore[reportAttributeAccessIssue]
        bank: int = defence.bank  # pyright: ignore[reportAttributeAccessIssue]
        self._nonmembers = self.split.stream("aux_nonmember", size, seed, repeat=bank)
        self._members = self.split.stream("aux_member", size, seed + 1)
        self._seed = seed
        self._aux = torch.zeros(len(self.split.record_ids), dtype=torch.bool)
        self._aux[self.split.roles["aux_member"]] = True
        self._calls = 0

    def member_indices(self, step: Step) -> Int[Tensor, " batch"]:
        """Return the data set's indices of the training batch's records, on the loss's device."""
        indices = self.split.train_indices(self.trainer.current_epoch, step.batch_idx)
        return torch.as_tensor(indices, device=step.loss.device)

    def is_aux_member(self, indices: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Return which records the proxy may be fitted on."""
        self._aux = self._aux.to(indices.device)
        return self._aux[indices]

    def nonmembers(self) -> tuple[Any, int | None]:
        """Return the next batch of auxiliary non-members, on the device, and its place in the bank, None without one.

        A place in the bank gives the same records, views and draws each time.
        """
        item = next(self._nonmembers)
        batch = self.trainer.strategy.batch_to_device(item.batch)
        place = item.place if self._nonmembers.repeat else None
        if not self._views:
            return batch, place
        pictures = picture_place(batch)
        if pictures is None:
            self._views = 0
            rank_zero_info(
                "SMPLoRA: the batches hold no pictures, so its auxiliary non-members are used as they are and may be "
                "memorised (`aux_views: 0` says so too and ends this line)."
            )
            return batch, place
        keys = [
            (self._seed, index, number % self._views) for index, number in zip(item.indices, item.passes, strict=True)
        ]
        return with_views(batch, pictures, keys), place

    def members(self) -> Any:
        """Return the next batch of auxiliary members, on the device."""
        return self.trainer.strategy.batch_to_device(next(self._members).batch)

    def key(self, draw: int, place: int | None) -> tuple[int | str, ...]:
        """Return the key of a draw: the same at each visit of a place in the bank, else one that no other draw has."""
        if place is not None:
            return ("bank", place, draw)
        self._calls += 1
        return ("draw", self._calls, draw)

    def state_dict(self) -> dict[str, Any]:
        """Return the streams' positions."""
        return {
            "nonmembers": self._nonmembers.state_dict(),
            "members": self._members.state_dict(),
            "calls": self._calls,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._nonmembers.load_state_dict(state["nonmembers"])
        self._members.load_state_dict(state["members"])
        self._calls = int(state["calls"])
