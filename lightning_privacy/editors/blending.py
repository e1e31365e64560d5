"""How an edit is mixed into the picture, and to which grid of values the result goes."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from lightning_privacy.errors import InputError

__all__ = ["Grid", "blend", "check_pictures", "to_grid"]

Grid = Literal["none", "round", "truncate"]
"""Whether results are multiples of 1/255: not at all, by rounding, or by cutting off as released scripts do."""
Pictures = Float[Tensor, "batch channels height width"]


def to_grid(images: Pictures, grid: Grid) -> Pictures:
    """Return pictures as 8-bit files keep them; ``none`` leaves them as they are."""
    return images if grid == "none" else images.mul(255).round().div(255)


def blend(images: Pictures, edited: Pictures, alpha: float | int, grid: Grid = "none") -> Pictures:
    """Return ``clip((1 - alpha) x + alpha e)``.

    Args:
        images: x, values in [0, 1].
        edited: e, values in [0, 1].
        alpha: Share of the edit, 0 to 1.
        grid: ``truncate`` takes x and e as bytes and cuts the blend off, as ``astype(uint8)`` does.

    Example:
        >>> import torch
        >>> x, e = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3 / 255)
        >>> [round(blend(x, e, 0.5, grid).item() * 255, 3) for grid in ("none", "round", "truncate")]
        [1.5, 2.0, 1.0]

    Source:
        Released evaluation script of arXiv 2405.16285 (alpha 0.5, truncation).
    """
    if grid == "truncate":
        x, e = images.double().mul(255).round(), edited.double().mul(255).round()
        mixed = ((1 - alpha) * x + alpha * e).clamp(0, 255).floor()
        return mixed.div(255).to(images.dtype)
    return to_grid(((1 - alpha) * images + alpha * edited).clamp(0, 1), grid)


def check_pictures(images: Pictures, who: str) -> None:
    """Refuse what is no batch of pictures in [0, 1].

    Raises:
        InputError: values lie outside or are not finite.
    """
    low, high = (float(v) for v in images.detach().aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # also where a value is not a number
        raise InputError(
            f"{who} got pictures with values from {low:.3g} to {high:.3g}; it edits "
            "pictures in [0, 1]. Normalise inside the model (`mean`, `std`), not in the data."
        )


def check_grid(grid: str, who: str) -> None:
    """Refuse an unknown grid.

    Raises:
        InputError: there is no such grid.
    """
    if grid not in get_args(Grid):
        raise InputError(f"{who}: `grid` is {grid!r}; it must be one of {', '.join(get_args(Grid))}.")
