"""The starting noise of an edit: one for all pictures, or one a picture."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.errors import InputError

__all__ = ["NoiseKind", "check_noise", "noise_generators", "starting_noise"]

NoiseKind = Literal["fixed", "per_image"]
"""``fixed``: every picture begins with the same noise, as in the released script, so that edits share a residue that can be
averaged. ``per_image``: a function of key and picture."""


def check_noise(noise: str, who: str) -> None:
    """Refuse an unknown kind of noise.

    Raises:
        InputError: there is no such kind.
    """
    if noise not in get_args(NoiseKind):
        raise InputError(f"{who}: `noise` is {noise!r}; it must be `fixed` or `per_image`.")


def noise_generators(
    secret: LockSecret,
    images: Float[Tensor, "batch channels height width"],
    kind: NoiseKind,
    device: torch.device | str = "cpu",
) -> list[torch.Generator]:
    """Return one generator a picture.

    Args:
        secret: Whose seed counts.
        images: Values in [0, 1]; as bytes they enter the HMAC of ``per_image``.
        kind: ``fixed`` or ``per_image``.
        device: Where the noise is drawn: the same seed gives other noise on another kind of device.

    Example:
        >>> x = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
        >>> for kind in ("fixed", "per_image"):
        ...     one, other = noise_generators(LockSecret(seed=1024), x, kind)
        ...     print(one.initial_seed() == other.initial_seed())
        True
        False
    """
    if kind == "fixed":
        seeds = [secret.seed_number()] * len(images)
    else:
        pixels = images.detach().float().mul(255).round().to("cpu", torch.uint8).contiguous()
        shape = str(tuple(pixels.shape[1:]))
        seeds = [secret.seed_number("noise of", shape, picture.numpy().tobytes()) for picture in pixels]
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def starting_noise(
    generators: list[torch.Generator], shape: tuple[int, ...], device: torch.device | str
) -> Float[Tensor, "batch channels height width"]:
    """Return Gaussian noise, each picture's from its own generator.

    Args:
        generators: One a picture.
        shape: Of one picture's noise.
        device: Where it goes.
    """
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators]).to(device)
