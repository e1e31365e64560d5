"""The pictures of a leakage audit: the client's own, of which some are attacked, and the attacker's."""

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.callbacks.audits.inversion_pictures import AUX, FEWEST_OWN
from lightning_privacy.callbacks.audits.untouched import on_device
from lightning_privacy.core.batches import has_labels, images_of, labels_of
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["VICTIM_ROLE", "LeakagePictures", "read_leakage_pictures"]

VICTIM_ROLE = "member"
_CANDIDATES = 128  # chosen here: pictures among which a reconstruction must find its own
_MOST_OWN = 2000  # chosen here: more do not help a small prior
_VAL_SHARE = 0.2  # as in the audit of single pictures
Pictures = Float[Tensor, "n channels height width"]


@dataclass(frozen=True)
class LeakagePictures:
    """The pictures of one audit, on the module's device.

    Args:
        victims: The client's pictures that are attacked; the first ``victims`` times ``batch`` of them for a batch size.
        labels: Their classes.
        others: Further pictures of the client, among which a reconstruction must find its own.
        own: The attacker's, to train on.
        own_labels: Their classes.
        own_val: The attacker's, for its choices.
        template: A batch.
    """

    victims: Pictures
    labels: Int[Tensor, " n"]
    others: Float[Tensor, "o channels height width"]
    own: Float[Tensor, "m channels height width"]
    own_labels: Int[Tensor, " m"]
    own_val: Float[Tensor, "v channels height width"]
    template: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self.victims.shape
        return channels, height, width


def read_leakage_pictures(module: L.LightningModule, split: Any, records: int, seed: int) -> LeakagePictures:
    """Read the pictures of an audit.

    Args:
        module: Whose device and transfer hooks are used.
        split: The set-up `MembershipSplit`.
        records: The client's records that are attacked.
        seed: Of the choice of victims and of the attacker's validation pictures.

    Raises:
        InputError: there are too few, they have no classes, or they are no floats in [0, 1].
    """
    private, labels, template = _read(module, split, VICTIM_ROLE, records + _CANDIDATES)
    if len(private) < records:
        raise InputError(
            f"LeakageAudit attacks {records} records (victims times the largest batch size), but the role `{VICTIM_ROLE}` has "
            f"{len(private)}; lower `victims` or `batch_sizes`."
        )
    own, own_labels, _ = _read(module, split, AUX, _MOST_OWN)
    if len(own) < FEWEST_OWN:
        raise InputError(
            f"LeakageAudit: the role `{AUX}` has {len(own)} pictures for floors and priors; give it at least {FEWEST_OWN} by "
            "MembershipSplit(fractions=...)."
        )
    order = _shuffled(len(private), seed, "victims").to(private.device)
    mine = _shuffled(len(own), seed, "own").to(own.device)
    cut = max(1, round(_VAL_SHARE * len(own)))
    return LeakagePictures(
        private[order[:records]],
        labels[order[:records]],
        private[order[records:]],
        own[mine[cut:]],
        own_labels[mine[cut:]],
        own[mine[:cut]],
        template,
    )


def _read(module: L.LightningModule, split: Any, role: str, most: int) -> tuple[Tensor, Tensor, Any]:
    found: list[Tensor] = []
    classes: list[Tensor] = []
    template = None
    for batch in split.loader(role):
        moved = on_device(module, batch)
        template = moved if template is None else template
        found.append(images_of(moved))
        if not has_labels(moved):
            raise InputError(
                f"LeakageAudit: the pictures of the role `{role}` have no classes, so that no gradient of a cross-entropy can "
                "be taken; it needs batches with a `label`."
            )
        classes.append(labels_of(moved))
        if sum(map(len, found)) >= most:
            break
    if not found:
        return torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.long), None
    pictures = torch.cat(found)[:most]
    if pictures.ndim != 4 or not pictures.is_floating_point() or float(pictures.min()) < 0 or float(pictures.max()) > 1:
        raise InputError(
            f"LeakageAudit: the pictures of the role `{role}` have shape {tuple(pictures.shape)}, type {pictures.dtype} and "
            f"values from {float(pictures.min()):.3g} to {float(pictures.max()):.3g}; PSNR and SSIM are defined on floats in "
            "[0, 1]. Let the datamodule yield those and normalise inside the module (`mean`, `std` of ImageClassifier)."
        )
    return pictures.float(), torch.cat(classes)[:most], template


def _shuffled(n: int, seed: int, what: str) -> Tensor:
    return torch.randperm(n, generator=seeded_generator(seed, "leakage pictures", what))
