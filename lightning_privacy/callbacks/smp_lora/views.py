"""Mirrored, turned and cropped versions of auxiliary pictures, so that the defence cannot memorise its yardstick."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator

SMALLEST_CROP = 0.92  # chosen here: the motif stays whole
LARGEST_ANGLE = 0.1  # radians
LARGEST_SHIFT = 0.1  # share of half the height; pixels beyond the border repeat it
SMALLEST_SIDE = 8  # below, a 4-dimensional tensor is taken for something else than pictures

__all__ = ["picture_place", "random_views", "with_views"]


def picture_place(batch: Any) -> str | int | None:
    """Return the key (or place) of the pictures in a batch, None where there are none.

    Pictures are the first floating-point tensor of shape (batch, 1 or 3, height, width).
    """
    items = batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, list | tuple) else ()
    for place, value in items:
        if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point():
            channels, *sides = value.shape[1:]
            if channels in (1, 3) and min(sides) >= SMALLEST_SIDE:
                return place
    return None


def with_views(batch: Any, place: str | int, keys: Sequence[Sequence[int | str]]) -> Any:
    """Return a batch of the same type with one random view in place of each picture.

    Args:
        batch: A mapping, list or tuple.
        place: What `picture_place` returned.
        keys: What each picture's view is a function of.
    """
    views = random_views(batch[place], keys)
    if isinstance(batch, Mapping):
        return {**batch, place: views}
    items = [views if i == place else value for i, value in enumerate(batch)]
    return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)


def random_views(
    images: Float[Tensor, "batch channels height width"], keys: Sequence[Sequence[int | str]]
) -> Float[Tensor, "batch channels height width"]:
    """Mirror, turn, crop and shift each picture a little, as a function of its key alone.

    Args:
        images: Values in any range.
        keys: One key a picture.
    """
    height, width = images.shape[-2:]
    theta = torch.stack([_placement(key, height / width) for key in keys])
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _placement(key: Sequence[int | str], aspect: float) -> Float[Tensor, "2 3"]:
    generator = seeded_generator("view", *key)
    flip, zoom, angle, shift = torch.rand(4, generator=generator, device="cpu").tolist()
    mirror, zoom = (-1.0 if flip < 0.5 else 1.0), SMALLEST_CROP + (1 - SMALLEST_CROP) * zoom
    turn = torch.tensor(LARGEST_ANGLE * (2 * angle - 1))
    cos, sin = float(turn.cos()), float(turn.sin())
    # affine_grid's units are half the width and half the height: the aspect keeps a turn a turn.
    return torch.tensor(
        [
            [mirror * zoom * cos, -zoom * sin * aspect, 0.0],
            [mirror * zoom * sin / aspect, zoom * cos, LARGEST_SHIFT * (2 * shift - 1)],
        ]
    )
