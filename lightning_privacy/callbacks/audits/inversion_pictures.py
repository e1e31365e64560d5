"""The pictures of an inversion audit: the attacker's own, and two kinds of victims that nobody chose by looking."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.audits.inversion_results import Victims
from lightning_privacy.callbacks.audits.inversion_tap import AttackerPictures
from lightning_privacy.callbacks.audits.inversion_target import read_pictures
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["AUX", "FEWEST_OWN", "VICTIM_ROLES", "AuditPictures", "read_audit_pictures"]

AUX = "attack_nonmember"
VICTIM_ROLES: Mapping[Victims, str] = {"private": "member", "heldout": "holdout"}
FEWEST_OWN = 16  # chosen here: a decoder cannot learn from fewer, and the choice of attacks takes a fifth of them
_VAL_SHARE = 0.2  # chosen here


@dataclass(frozen=True)
class AuditPictures:
    """The pictures of one audit, on the module's device.

    Args:
        own: The attacker's.
        victims: By kind.
        labels: Classes of the victims, by kind; empty where the data have none.
        template: The first batch, from which batches for the module are filled.
    """

    own: AttackerPictures
    victims: Mapping[Victims, Float[Tensor, "n channels height width"]]
    labels: Mapping[Victims, Tensor]
    template: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self.own.train.shape
        return channels, height, width


def read_audit_pictures(module: L.LightningModule, split: Any, victims: int, seed: int) -> AuditPictures:
    """Read the pictures of an audit.

    Args:
        module: Whose device they are moved to.
        split: The set-up `MembershipSplit`.
        victims: Pictures of each kind; fewer where a role has fewer.
        seed: Of the choice of victims and of the attacker's validation pictures.

    Raises:
        InputError: the attackers have fewer than 16 pictures, or pictures are not floats in [0, 1].
    """
    own, own_labels, template = read_pictures(module, split, AUX)
    if len(own) < FEWEST_OWN:
        raise InputError(
            f"InversionAudit: the role `{AUX}` has {len(own)} pictures, on which no attacker learns to reconstruct; give it at "
            f"least {FEWEST_OWN} by MembershipSplit(fractions=...), better hundreds."
        )
    order = _shuffled(len(own), seed, "own")
    cut = max(1, round(_VAL_SHARE * len(own)))
    train, val = order[cut:].to(own.device), order[:cut].to(own.device)
    chosen: dict[Victims, Tensor] = {}
    labels: dict[Victims, Tensor] = {}
    for kind, role in VICTIM_ROLES.items():
        found, classes, _ = read_pictures(module, split, role)
        some = _shuffled(len(found), seed, kind)[:victims].to(found.device)
        chosen[kind] = found[some]
        if classes is not None:
            labels[kind] = classes[some]
    mine = AttackerPictures(own[train], own[val], None if own_labels is None else own_labels[train])
    return AuditPictures(mine, chosen, labels, template)


def _shuffled(n: int, seed: int, what: str) -> Tensor:
    return torch.randperm(n, generator=seeded_generator(seed, "inversion pictures", what))
