"""The pictures of a lock audit: raw ones with their classes, and their edits with the key."""

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.lock.target import OwnPictures
from lightning_privacy.callbacks.audits.split_access import role_indices
from lightning_privacy.callbacks.audits.untouched import on_device
from lightning_privacy.core.batches import has_labels, images_of, labels_of
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.datamodules.locked import LockedDataModule
from lightning_privacy.errors import InputError

__all__ = ["AUX", "CHOICE", "SCORED", "ChoicePictures", "LockPictures", "read_lock_pictures"]

AUX, CHOICE, SCORED = "attack_nonmember", "val", "holdout"
_VAL_SHARE = 0.2  # chosen here: of the attacker's pictures, for its choices
_FEWEST = 10
Pictures = Float[Tensor, "n channels height width"]


@dataclass(frozen=True)
class ChoicePictures:
    """Pictures for choices among several locked models, so that those that are scored choose nothing.

    Args:
        role: ``val``; where that is empty ``attack_nonmember``, of which the attacker's own for choices are taken.
        raw: As an attacker would show them.
        keyed: The same, edited with the key.
        labels: Their classes.
    """

    role: str
    raw: Pictures
    keyed: Pictures
    labels: Int[Tensor, " n"]


@dataclass(frozen=True)
class LockPictures:
    """The pictures of one audit, on the module's device.

    Args:
        own: The attacker's.
        choice: Those for choices among models.
        raw: What is scored, as an attacker would show it.
        keyed: The same, edited with the key.
        labels: Their classes.
        template: A batch, from which batches for the module are filled.
    """

    own: OwnPictures
    choice: ChoicePictures
    raw: Pictures
    keyed: Pictures
    labels: Int[Tensor, " n"]
    template: Any


def read_lock_pictures(module: L.LightningModule, split: Any, locked: LockedDataModule, seed: int) -> LockPictures:
    """Read the pictures of an audit.

    Args:
        module: Whose device and transfer hooks are used.
        split: The set-up `MembershipSplit`.
        locked: The `LockedDataModule` in it.
        seed: Of the order of the attacker's pictures.

    Raises:
        InputError: there are too few, or they have no classes.
    """
    raw, keyed, labels, template = _read(module, split, locked, SCORED)
    own_raw, own_keyed, own_labels, _ = _read(module, split, locked, AUX)
    if len(own_raw) < _FEWEST or not len(raw):
        raise InputError(
            f"LockAudit: the roles `{AUX}` and `{SCORED}` have {len(own_raw)} and {len(raw)} pictures; give the attacker at "
            f"least {_FEWEST}, and something to score, by MembershipSplit(fractions=...)."
        )
    order = torch.randperm(len(own_raw), generator=seeded_generator(seed, "own pictures")).to(own_raw.device)
    cut = max(2, round(_VAL_SHARE * len(order)))
    val, train = order[:cut], order[cut:]
    own = OwnPictures(own_raw[train], own_labels[train], own_keyed[train], own_raw[val], own_labels[val])
    choice = ChoicePictures(AUX, own_raw[val], own_keyed[val], own_labels[val])
    if role_indices(split, CHOICE):
        choice = ChoicePictures(CHOICE, *_read(module, split, locked, CHOICE)[:3])
    return LockPictures(own, choice, raw, keyed, labels, template)


def _read(
    module: L.LightningModule, split: Any, locked: LockedDataModule, role: str
) -> tuple[Tensor, Tensor, Tensor, Any]:
    raw: list[Tensor] = []
    keyed: list[Tensor] = []
    labels: list[Tensor] = []
    template = None
    for batch in split.loader(role):
        moved = on_device(module, batch)
        template = moved if template is None else template
        if not has_labels(moved):
            raise InputError(f"LockAudit: the pictures of the role `{role}` have no classes to be right about.")
        shown, other = images_of(moved), _other(moved, "raw" if locked.locked else "edited")
        raw.append(other if locked.locked else shown)
        keyed.append(shown if locked.locked else other)
        labels.append(labels_of(moved))
    if not raw:
        return torch.zeros(0, 1, 1, 1), torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.long), None
    return torch.cat(raw).float(), torch.cat(keyed).float(), torch.cat(labels), template


def _other(batch: Any, name: str) -> Tensor:
    found = batch.get(name) if isinstance(batch, dict) else None
    if found is None and not isinstance(batch, dict):
        found = next((x for x in batch[2:] if isinstance(x, Tensor) and x.shape == batch[0].shape), None)
    if found is None:
        raise InputError(
            f"LockAudit needs the pictures `{name}` that LockedDataModule puts into every batch; a `collate_fn` or transfer "
            "hook may have dropped them."
        )
    return found
