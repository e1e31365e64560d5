"""Timesteps and noise as functions of numbers, so that device, rank count and batch order cannot change them."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.protocols import Draw

__all__ = ["keyed_draw", "offset_noise", "sequential_draw", "stratified_draw"]

VALIDATION_KEY = "validation draw, version 2"  # not the run's seed: runs of different seeds share their yardstick


def keyed_draw(number: int, records: Sequence[int], shape: Sequence[int], steps: int) -> Draw:
    """Draw a uniform timestep and standard noise for each record from (number, record) alone.

    Args:
        number: The part common to the batch.
        records: Identity of each record.
        shape: Shape of one record's latent.
        steps: Number of timesteps T; timesteps are 0 to T - 1.
    """
    timesteps, noise = [], []
    for record in records:
        generator = seeded_generator(number, record)
        timesteps.append(torch.randint(0, steps, (), generator=generator, device="cpu"))
        noise.append(torch.randn(tuple(shape), generator=generator, device="cpu"))
    return Draw(torch.stack(timesteps), torch.stack(noise))


def sequential_draw(generator: torch.Generator, batch: int, shape: Sequence[int], steps: int) -> Draw:
    """Draw for records without identity, in the order of the batch."""
    device = generator.device
    return Draw(
        torch.randint(0, steps, (batch,), generator=generator, device=device),
        torch.randn((batch, *shape), generator=generator, device=device),
    )


def stratified_draw(records: Sequence[int], index: int, count: int, shape: Sequence[int], steps: int) -> Draw:
    """Return the validation draw of stratum ``index``: the middle timestep of it, and noise fixed per record.

    The middles of ``count`` equal strata cover the schedule with less variance than uniform timesteps, and they are
    the same for every record, epoch, run and seed.

    Example:
        >>> [int(stratified_draw([7], i, 4, (1,), 1000).timesteps[0]) for i in range(4)]
        [125, 375, 625, 875]
    """
    middle = (2 * index + 1) * steps // (2 * count)
    noise = [
        torch.randn(tuple(shape), generator=seeded_generator(VALIDATION_KEY, index, r), device="cpu") for r in records
    ]
    return Draw(torch.full((len(records),), middle, device="cpu"), torch.stack(noise))


def offset_noise(
    draw: Draw, strength: float | int, generator: torch.Generator, records: Int[Tensor, " batch"] | None
) -> Draw:
    """Add one random constant per record and channel to the noise, so that training learns overall brightness.

    Source: N. Guttenberg, "Diffusion with offset noise", 2023; 0.05 to 0.1 is usual.

    Args:
        draw: A draw with noise.
        strength: Standard deviation of the constant.
        generator: Gives one number where records have an identity, else the constants themselves.
        records: Identity of the records.
    """
    noise = draw.noise
    if noise is None or strength == 0:
        return draw
    channels, ones = noise.shape[1], (1,) * (noise.ndim - 2)
    if records is None:
        offset = torch.randn((len(noise), channels), generator=generator, device=generator.device)
    else:
        number = int(torch.randint(0, 2**62, (), generator=generator, device=generator.device))
        offset = torch.stack(
            [
                torch.randn(channels, generator=seeded_generator(number, "offset", r), device="cpu")
                for r in records.tolist()
            ]
        )
    return Draw(draw.timesteps, noise + strength * offset.to(noise).view(len(noise), channels, *ones))
