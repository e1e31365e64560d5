"""The mathematics of noisy gradients, as pure functions (arXiv 1906.08935, section on defences).

| symbol | here | meaning |
|---|---|---|
| ``g`` | ``gradients`` | what would be shared, a tensor a parameter |
| ``s`` | ``std`` | standard deviation of the noise on each entry: in gradient units, or in units of a tensor's own spread |
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.noise_tap.functional import Distribution, unit_noise

__all__ = ["Scale", "add_noise", "noise_to_signal", "spread"]

Scale = Literal["absolute", "relative"]


def spread(gradient: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return a tensor's standard deviation about zero, ``sqrt(mean g^2)``, in float32 or wider.

    About zero and not about its mean: a tensor of one number, or of equal numbers, would otherwise get no noise.

    Args:
        gradient: g.

    Example:
        >>> spread(torch.tensor([3.0, -3.0, 3.0, 3.0])).item()
        3.0
    """
    wide = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    # The norm, because squares of small gradients underflow.
    return torch.linalg.vector_norm(wide) / max(1, gradient.numel()) ** 0.5


def add_noise(
    gradients: Mapping[str, Tensor],
    std: float | int,
    generator: torch.Generator,
    distribution: Distribution = "gaussian",
    scale: Scale = "absolute",
) -> dict[str, Tensor]:
    """Return ``g + s n`` (absolute) or ``g + s spread(g) n`` (relative), n of mean 0 and standard deviation 1.

    Args:
        gradients: g, by parameter name; noise is drawn in this order.
        std: s, at least 0; 0 returns the gradients themselves, without a draw.
        generator: Of the noise, on any device: noise is drawn on the generator's and moved to the tensor's.
        distribution: ``gaussian``, or ``laplace`` of scale ``s / sqrt(2)``.
        scale: Unit of s. Relative noise says how long the tensor was, and spares a tensor that is zero.

    Returns:
        Tensors of the same types.

    Example:
        >>> g = {"w": torch.full((40_000,), 2.0)}
        >>> noisy = add_noise(g, 0.5, torch.Generator().manual_seed(0), "laplace", "relative")
        >>> round((noisy["w"] - g["w"]).std().item(), 2)
        1.0

    Source:
        Zhu, Liu and Han, arXiv 1906.08935, section on defences, for absolute noise.
    """
    if std == 0:
        return dict(gradients)
    found: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        like = torch.empty(gradient.shape, dtype=gradient.dtype, device=generator.device)
        noise = unit_noise(like, distribution, generator).to(gradient.device)
        strength = std * spread(gradient) if scale == "relative" else std
        found[name] = (gradient + strength * noise).to(gradient.dtype)
    return found


def noise_to_signal(gradients: Mapping[str, Tensor], noisy: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Return the length of the noise over that of the gradient, all tensors as one vector.

    Args:
        gradients: Before noise; not empty.
        noisy: After it.

    Example:
        >>> noise_to_signal({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 14.0])}).item()
        2.0
    """
    signal = torch.stack([g.float().square().sum() for g in gradients.values()]).sum()
    noise = torch.stack([(noisy[k].float() - g.float()).square().sum() for k, g in gradients.items()]).sum()
    return (noise / signal).sqrt()
