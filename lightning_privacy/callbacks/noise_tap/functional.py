"""The mathematics of noise on a released tensor, as pure functions.

| symbol | here | meaning |
|---|---|---|
| ``z`` | ``hidden`` | what a layer computes of one picture, the tensor that leaves the client |
| ``B`` | ``bound`` | largest absolute value, or largest norm, of ``z`` before noise |
| ``sigma`` | ``sigma`` | standard deviation of the noise on each number of ``z``, for either distribution |
| ``Delta`` | ``sensitivity`` | largest distance between the bounded ``z`` of any two pictures |
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Bounding",
    "Distribution",
    "add_noise",
    "bounded",
    "gaussian_delta",
    "laplace_epsilon",
    "sensitivity",
    "unit_noise",
]

Distribution = Literal["gaussian", "laplace"]
Bounding = Literal["clip", "tanh", "norm"]


def bounded(
    hidden: Float[Tensor, " batch *shape"],
    bound: float | int,
    bounding: Bounding = "clip",
    distribution: Distribution = "gaussian",
) -> Float[Tensor, " batch *shape"]:
    """Limit what one picture can contribute to the released tensor.

    Args:
        hidden: z, one entry of the first dimension a picture.
        bound: B, above 0, in units of z.
        bounding: ``clip`` cuts each number to [-B, B]; ``tanh`` bends it there, ``B tanh(z / B)``; ``norm`` shortens a
            picture's whole tensor to norm B where it is longer.
        distribution: Of the noise that follows: ``norm`` is the Euclidean norm before Gaussian noise and the sum of
            absolute values before Laplace noise, the norms in which their guarantees are stated.

    Returns:
        A tensor of the same shape and type.

    Example:
        >>> z = torch.tensor([[3.0, -4.0]])
        >>> bounded(z, 1, "clip").tolist(), bounded(z, 1, "norm").norm().item()
        ([[1.0, -1.0]], 1.0)
    """
    if bounding == "clip":
        return hidden.clamp(-bound, bound)
    if bounding == "tanh":
        return bound * torch.tanh(hidden / bound)
    # In float32: the squares of half-precision numbers overflow from 256 on.
    rows = hidden.flatten(1).to(torch.promote_types(hidden.dtype, torch.float32))
    norms = torch.linalg.vector_norm(rows, 2 if distribution == "gaussian" else 1, dim=1)
    share = (bound / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)
    return (rows * share[:, None]).view(hidden.shape).to(hidden.dtype)


def unit_noise(
    like: Float[Tensor, "*shape"], distribution: Distribution = "gaussian", generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Draw independent noise of mean 0 and standard deviation 1, in float32 or wider.

    Args:
        like: Shape and device; nothing else of it is used.
        distribution: ``gaussian`` or ``laplace`` (scale ``1 / sqrt(2)``).
        generator: On the tensor's device; None for the device's global random state.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> round(unit_noise(torch.empty(100_000), "laplace", g).std().item(), 1)
        1.0
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    if distribution == "gaussian":
        return torch.randn(like.shape, dtype=wide, device=like.device, generator=generator)
    # The difference of two exponentials is Laplace; the inverse distribution function would give infinities at its ends.
    one, other = (torch.empty(like.shape, dtype=wide, device=like.device) for _ in range(2))
    return (one.exponential_(generator=generator) - other.exponential_(generator=generator)) / math.sqrt(2)


def add_noise(
    hidden: Float[Tensor, "*shape"],
    sigma: float | int,
    distribution: Distribution = "gaussian",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """Return ``z + sigma * noise``; with ``sigma`` 0 the tensor itself, without a draw.

    Args:
        hidden: z.
        sigma: Standard deviation, at least 0, in units of z.
        distribution: Of the noise.
        generator: See `unit_noise`.

    Example:
        >>> z = torch.ones(2)
        >>> add_noise(z, 0) is z
        True
    """
    if sigma == 0:
        return hidden
    return hidden + (sigma * unit_noise(hidden, distribution, generator)).to(hidden.dtype)


def sensitivity(bound: float | int, bounding: Bounding, distribution: Distribution, numbers: int) -> float:
    """Return Delta, the largest distance between the bounded tensors of two pictures.

    Args:
        bound: B.
        bounding: How B is enforced.
        distribution: Laplace noise is judged by the sum of absolute differences, Gaussian by the Euclidean distance.
        numbers: Numbers that are released a picture.

    Example:
        >>> sensitivity(1.0, "clip", "laplace", 100), sensitivity(1.0, "clip", "gaussian", 100)
        (200.0, 20.0)
    """
    if bounding == "norm":
        return 2.0 * bound
    return 2.0 * bound * (numbers if distribution == "laplace" else math.sqrt(numbers))


def laplace_epsilon(sensitivity: float | int, sigma: float | int) -> float:
    """Return epsilon of local differential privacy of one release under Laplace noise: ``sqrt(2) Delta / sigma``.

    Args:
        sensitivity: Delta in the sum of absolute differences, at least 0.
        sigma: Standard deviation of the noise, above 0; its scale is ``sigma / sqrt(2)``.

    Returns:
        In nats, for one release of one picture; k releases cost k times as much.

    Example:
        >>> round(laplace_epsilon(200.0, 2.0), 1)
        141.4

    Source:
        Dwork et al., "Calibrating noise to sensitivity in private data analysis", TCC 2006.
    """
    return math.sqrt(2) * sensitivity / sigma


def gaussian_delta(epsilon: float | int, sensitivity: float | int, sigma: float | int) -> float:
    """Return the smallest delta for which one release under Gaussian noise is (epsilon, delta) locally private.

    ``delta = Phi(Delta / 2 sigma - epsilon sigma / Delta) - e^epsilon Phi(-Delta / 2 sigma - epsilon sigma / Delta)``.

    Args:
        epsilon: At least 0.
        sensitivity: Delta in the Euclidean distance, above 0.
        sigma: Standard deviation of the noise, above 0; k releases are as one with ``sigma / sqrt(k)``.

    Returns:
        Between 0 and 1.

    Example:
        >>> round(gaussian_delta(1.0, 1.0, 1.0), 4)
        0.1269

    Source:
        Balle and Wang, arXiv 1805.06530, theorem 8.
    """
    half, slope = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    logs = torch.special.log_ndtr(torch.tensor([half - slope, -half - slope], dtype=torch.float64))
    # In logarithms: e^epsilon alone overflows from 710 on, where noise is as weak as it is in practice.
    return max(0.0, math.exp(float(logs[0])) - math.exp(min(float(logs[1]) + epsilon, 0.0)))
