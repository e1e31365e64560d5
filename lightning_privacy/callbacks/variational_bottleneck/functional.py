"""The mathematics of the variational information bottleneck (arXiv 1612.00410; as a defence, arXiv 2009.05241).

| symbol | here | meaning |
|---|---|---|
| ``x``, ``z`` | | picture, and the random latent that takes the place of a hidden layer's output |
| ``p(z|x)`` | ``mean``, ``log_variance`` | N(mu(x), diag sigma(x)^2) |
| ``r(z)`` | | the prior N(0, I) |
| ``R`` | ``rate`` | KL(p(z|x) || r(z)) of each picture; its mean bounds the information I(X; Z) from above |
| ``beta`` | ``beta`` | weight of the rate |
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["bottleneck_objective", "rate", "reparameterise"]


def rate(
    mean: Float[Tensor, " batch *latent"], log_variance: Float[Tensor, " batch *latent"]
) -> Float[Tensor, " batch"]:
    """Return KL(N(mu, sigma^2) || N(0, 1)) of each record, summed over its latents.

    ``R = 1/2 sum (mu^2 + sigma^2 - log sigma^2 - 1)``. Its mean over records is at least the mutual information between
    picture and latent, whatever the true distribution of latents is (arXiv 1612.00410).

    Args:
        mean: mu, of each record.
        log_variance: log sigma^2, of each record.

    Returns:
        In nats, at least 0.

    Example:
        >>> rate(torch.ones(1, 4), torch.zeros(1, 4)).item()
        2.0
    """
    # expm1: near the prior, where sigma is 1, the difference of nearly equal numbers would be rounding error.
    terms = mean.square() + torch.expm1(log_variance) - log_variance
    return terms.flatten(1).sum(1) / 2


def reparameterise(
    mean: Float[Tensor, " batch *latent"],
    log_variance: Float[Tensor, " batch *latent"],
    noise: Float[Tensor, " batch *latent"],
) -> Float[Tensor, " batch *latent"]:
    """Return the latent ``z = mu + sigma * noise``, through which gradients reach mu and sigma.

    Args:
        mean: mu.
        log_variance: log sigma^2.
        noise: Independent standard normal numbers, one for each latent of each record.

    Example:
        >>> reparameterise(torch.ones(1, 1), torch.zeros(1, 1), torch.full((1, 1), 0.5)).item()
        1.5
    """
    return mean + torch.exp(log_variance / 2) * noise


def bottleneck_objective(
    loss: Float[Tensor, ""], rates: Float[Tensor, " batch"], beta: float | int
) -> Float[Tensor, ""]:
    """Return ``L + beta * mean R`` (arXiv 1612.00410, equation 17).

    Args:
        loss: L, with z drawn once for each record.
        rates: R of each record.
        beta: At least 0.

    Example:
        >>> round(bottleneck_objective(torch.tensor(0.5), torch.tensor([100.0, 300.0]), 1e-3).item(), 3)
        0.7
    """
    return loss + (beta * rates.mean()).to(loss.dtype)
