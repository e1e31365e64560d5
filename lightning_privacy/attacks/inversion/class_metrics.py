"""How much of a class's private pictures class-level reconstructions show; not pixel by pixel, which would mean nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_privacy.attacks.inversion.plug_and_play import ClassPictures
from lightning_privacy.errors import InputError

__all__ = ["ClassMeasures", "measure_class_pictures"]


@dataclass(frozen=True)
class ClassMeasures:
    """Numbers of class-level reconstructions, one a picture, classes one after the other.

    Args:
        labels: Classes that were attacked.
        recognised: Whether the evaluation classifier sees the class (accuracy@1 is the mean).
        distance: Euclidean distance in features to the nearest private picture of the class.
        natural: The same distance from each private picture of the class to the nearest other one: a scale.
    """

    labels: Int[Tensor, " n"]
    recognised: Bool[Tensor, " n"]
    distance: Float[Tensor, " n"]
    natural: Float[Tensor, " m"]


def measure_class_pictures(
    found: Sequence[ClassPictures],
    classify: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
    private: Float[Tensor, "n channels height width"],
    private_labels: Int[Tensor, " n"],
) -> ClassMeasures:
    """Measure reconstructions of classes with a classifier that the attacked model does not share.

    A classifier alone may take a fluke for the class (Ho et al., "Uncovering the limitations of model
    inversion evaluation", 2025); the distance in features stands beside it.

    Args:
        found: What `PlugAndPlay` made.
        classify: Pictures -> class scores of an independently trained evaluation classifier.
        features: Pictures -> its features.
        private: The attacked model's training pictures.
        private_labels: Their classes.

    Raises:
        InputError: an attacked class has no private picture.
    """
    with torch.no_grad():
        known = torch.cat([features(part).flatten(1) for part in private.split(256)])
        labels, recognised, distance, natural = [], [], [], []
        for made in found:
            own = known[private_labels == made.label]
            if not len(own):
                raise InputError(f"The class {made.label} has no private picture to compare with; attack another.")
            labels += [torch.full((len(made.pictures),), made.label)]
            recognised += [classify(made.pictures).argmax(1).cpu() == made.label]
            distance += [torch.cdist(features(made.pictures).flatten(1), own).min(1).values.cpu()]
            if len(own) > 1:
                apart = torch.cdist(own, own).fill_diagonal_(float("inf"))
                natural += [apart.min(1).values.cpu()]
    empty = [torch.zeros(0)]
    return ClassMeasures(torch.cat(labels), torch.cat(recognised), torch.cat(distance), torch.cat(natural or empty))
