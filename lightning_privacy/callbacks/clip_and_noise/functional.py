"""The mathematics of clipped gradients with noise, as pure functions (arXiv 1607.00133, algorithm 1, without accounting).

| symbol | here | meaning |
|---|---|---|
| ``g_i`` | ``per_record`` | gradient of record i alone, all parameters as one vector |
| ``C`` | ``max_norm`` | largest norm of one clipped gradient |
| ``sigma`` | ``noise_multiplier`` | noise in units of C |
| ``n`` | ``units`` | clipped gradients whose mean is shared: records of a batch, or 1 where the whole update is clipped |
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.gradient_noise.functional import add_noise

__all__ = [
    "clip_and_noise",
    "clip_factor",
    "clip_records_and_noise",
    "clipped",
    "global_norm",
    "noise_std",
    "record_norms",
]


def global_norm(gradients: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Return the Euclidean norm of all tensors as one vector, in float32 or wider.

    Args:
        gradients: Not empty.

    Example:
        >>> global_norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}).item()
        5.0
    """
    place = next(iter(gradients.values())).device
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in gradients.values()]
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g).to(place) for g in wide]))


def clip_factor(norms: Float[Tensor, "*units"], max_norm: float | int) -> Float[Tensor, "*units"]:
    """Return ``min(1, C / |g|)``, by which a gradient of norm ``|g|`` is multiplied.

    Args:
        norms: Norms, at least 0.
        max_norm: C, above 0.

    Example:
        >>> clip_factor(torch.tensor([0.0, 0.5, 4.0]), 1).tolist()
        [1.0, 1.0, 0.25]
    """
    return (max_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)


def noise_std(max_norm: float | int, noise_multiplier: float | int, units: int) -> float:
    """Return ``sigma C / n``, the standard deviation of each entry's noise on a mean of n clipped gradients.

    Args:
        max_norm: C.
        noise_multiplier: sigma.
        units: n, at least 1.

    Example:
        >>> noise_std(2.0, 1.5, 6)
        0.5
    """
    return noise_multiplier * max_norm / units


def clipped(gradients: Mapping[str, Tensor], max_norm: float | int) -> dict[str, Tensor]:
    """Return ``min(1, C / |g|) g``, all tensors as one vector; differentiable.

    Args:
        gradients: g, by parameter name.
        max_norm: C, above 0.

    Example:
        >>> clipped({"w": torch.tensor([3.0, 4.0])}, 1.0)["w"].tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    factor = clip_factor(global_norm(gradients), max_norm)
    return {name: (g * factor.to(g.device)).to(g.dtype) for name, g in gradients.items()}


def clip_and_noise(
    gradients: Mapping[str, Tensor],
    max_norm: float | int,
    noise_multiplier: float | int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return ``min(1, C / |g|) g + N(0, (sigma C)^2)``: a whole update is the one thing that is clipped.

    Args:
        gradients: The update, by parameter name.
        max_norm: C, above 0.
        noise_multiplier: sigma, at least 0.
        generator: Of the noise.

    Example:
        >>> clip_and_noise({"w": torch.tensor([3.0, 4.0])}, 1.0, 0.0, torch.Generator())["w"].tolist()
        [0.6000000238418579, 0.800000011920929]

    Source:
        The update of one client, arXiv 1710.06963, algorithm 1.
    """
    return add_noise(clipped(gradients, max_norm), noise_std(max_norm, noise_multiplier, 1), generator)


def clip_records_and_noise(
    per_record: Mapping[str, Float[Tensor, "records ..."]],
    max_norm: float | int,
    noise_multiplier: float | int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return ``1/n sum_i min(1, C / |g_i|) g_i + N(0, (sigma C / n)^2)``.

    Args:
        per_record: Gradients of single records, by parameter name; the first dimension is the record.
        max_norm: C, above 0.
        noise_multiplier: sigma, at least 0.
        generator: Of the noise.

    Example:
        >>> clip_records_and_noise({"w": torch.tensor([[8.0], [0.5]])}, 1.0, 0.0, torch.Generator())["w"].item()
        0.75

    Source:
        Abadi et al., arXiv 1607.00133, algorithm 1.
    """
    rows = [g.flatten(1).to(torch.promote_types(g.dtype, torch.float32)) for g in per_record.values()]
    factors = clip_factor(torch.linalg.vector_norm(torch.cat(rows, 1), dim=1), max_norm)
    mean = {name: (g * factors.view(-1, *[1] * (g.ndim - 1))).mean(0).to(g.dtype) for name, g in per_record.items()}
    return add_noise(mean, noise_std(max_norm, noise_multiplier, len(factors)), generator)


def record_norms(
    losses: Float[Tensor, " records"], parameters: Sequence[Tensor], scale: float | int = 1.0
) -> Float[Tensor, " records"]:
    """Return the norm of each record's gradient, by one backward pass a record; the graph is kept.

    Args:
        losses: Loss of each record, with its graph.
        parameters: What the gradient is of; one that a loss does not depend on counts as zero.
        scale: By which losses are multiplied on the way, so that gradients do not vanish in half precision.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> record_norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]) @ w, [w]).tolist()
        [5.0, 2.0]
    """
    norms: list[Tensor] = []
    for loss in losses:
        found = torch.autograd.grad(loss * scale, list(parameters), retain_graph=True, allow_unused=True)
        there = {str(i): g for i, g in enumerate(found) if g is not None}
        norms.append(global_norm(there) / scale if there else losses.new_zeros(()))
    return torch.stack([norm.to(losses.device) for norm in norms]).to(torch.float32)
