"""The diffusion mathematics of training: noising, velocity, and loss weights."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["diffuse", "min_snr_weight", "velocity"]


def _like(values: Float[Tensor, " batch"], x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    return values.to(x).view(-1, *(1,) * (x.ndim - 1))


def diffuse(
    x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], alpha_bar: Float[Tensor, " batch"]
) -> Float[Tensor, "batch ..."]:
    """Return the noised latent sqrt(a) x + sqrt(1 - a) noise (arXiv 2006.11239, eq. 4).

    Args:
        x: Clean latents.
        noise: Standard Gaussian noise.
        alpha_bar: Cumulative product of alphas at each sample's timestep, 0 to 1.

    Example:
        >>> import torch
        >>> diffuse(torch.tensor([[1.0]]), torch.tensor([[1.0]]), torch.tensor([0.64]))
        tensor([[1.4000]])
    """
    a = _like(alpha_bar, x)
    return a.sqrt() * x + (1 - a).sqrt() * noise


def velocity(
    x: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], alpha_bar: Float[Tensor, " batch"]
) -> Float[Tensor, "batch ..."]:
    """Return the target of a v-prediction model, sqrt(a) noise - sqrt(1 - a) x (arXiv 2202.00512, appendix D).

    Args:
        x: Clean latents.
        noise: Standard Gaussian noise.
        alpha_bar: Cumulative product of alphas at each sample's timestep.

    Example:
        >>> import torch
        >>> velocity(torch.tensor([[1.0]]), torch.tensor([[1.0]]), torch.tensor([0.64]))
        tensor([[0.2000]])
    """
    a = _like(alpha_bar, x)
    return a.sqrt() * noise - (1 - a).sqrt() * x


def min_snr_weight(
    alpha_bar: Float[Tensor, " batch"], gamma: float | int, v_prediction: bool = False
) -> Float[Tensor, " batch"]:
    """Return the min-SNR loss weight (arXiv 2303.09556, section 3.4).

    With SNR = a / (1 - a): min(SNR, gamma) / SNR for noise prediction, min(SNR, gamma) / (SNR + 1) for velocity.

    Args:
        alpha_bar: Cumulative product of alphas at each sample's timestep.
        gamma: Cap of the signal-to-noise ratio; the paper takes 5.
        v_prediction: Whether the model predicts velocity.

    Example:
        >>> import torch
        >>> min_snr_weight(torch.tensor([0.5, 0.95]), 5.0)
        tensor([1.0000, 0.2632])
    """
    snr = alpha_bar / (1 - alpha_bar)
    if v_prediction:
        return snr.clamp(max=gamma) / (snr + 1)
    # gamma / SNR capped at 1 is the same number, and stays finite where the last step has no signal left.
    return (gamma / snr).clamp(max=1.0)
