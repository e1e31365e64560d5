"""The ends of the scale on which reconstructions are judged: what needs no model, and what hides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_privacy.attacks.inversion.references import class_mean_pictures, mean_pictures
from lightning_privacy.attacks.inversion.target import FitRecord, InversionTarget
from lightning_privacy.attacks.inversion.trained_decoder import TrainedDecoder
from lightning_privacy.callbacks.audits.inversion_pictures import AuditPictures
from lightning_privacy.callbacks.audits.inversion_results import Reconstructed, Victims
from lightning_privacy.metrics.functional.reconstruction import paired_similarity

__all__ = ["References", "references_of"]


@dataclass(frozen=True)
class References:
    """Floors and ceiling.

    Args:
        floor: By kind of victims, the better of two guesses that need no model: the mean picture, and where the data have
            classes the mean of the victim's class, which knows the label.
        ceiling: By kind, what the attackers' decoder makes of pictures that are not hidden; empty where not asked for.
        made: All of them, as results.
    """

    floor: Mapping[Victims, Tensor]
    ceiling: Mapping[Victims, Tensor]
    made: tuple[Reconstructed, ...]


def references_of(
    pictures: AuditPictures, ceiling: bool, seed: int, decoder: Mapping[str, Any] | None = None
) -> References:
    """Return floors and ceiling of an audit.

    Args:
        pictures: The pictures.
        ceiling: Whether to train the decoder that is shown the pictures themselves.
        seed: Of that decoder.
        decoder: Its arguments, those of the attackers'.
    """
    made: list[Reconstructed] = []
    floors: dict[Victims, Tensor] = {}
    ceilings: dict[Victims, Tensor] = {}
    own, trained = pictures.own, FitRecord()
    if ceiling:
        everybody = torch.cat(list(pictures.victims.values()))
        itself = InversionTarget(lambda pictures: pictures, "split", pictures.shape)
        attack = TrainedDecoder(**(decoder or {}))
        trained = attack.fit(itself, own.train, own.val, seed)
        parts = (
            attack.reconstruct(itself, everybody, seed).cpu().split([len(each) for each in pictures.victims.values()])
        )
        ceilings.update(zip(pictures.victims, parts, strict=True))
    for kind, victims in pictures.victims.items():
        found = {"mean_picture": mean_pictures(own.train, len(victims))}
        if own.train_labels is not None and kind in pictures.labels:
            found["class_mean"] = class_mean_pictures(own.train, own.train_labels, pictures.labels[kind])
        # Where classes have few pictures, their means may be worse than the mean of all.
        floors[kind] = max(found.values(), key=lambda guess, victims=victims: _psnr(guess, victims)).cpu()
        if kind in ceilings:
            found["decoder_of_the_picture"] = ceilings[kind]
        for name, guess in found.items():
            fit = trained if name == "decoder_of_the_picture" else FitRecord()
            made.append(Reconstructed(None, kind, name, "none", guess.cpu(), fit))
    return References(floors, ceilings, tuple(made))


def _psnr(guess: Tensor, victims: Tensor) -> float:
    return float(paired_similarity(guess.cpu(), victims.cpu())["psnr"].mean())
