"""Random numbers that belong to an attack alone, so that neither the global state nor other attacks matter."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_privacy.core.randomness import derive_seed

__all__ = ["own_randomness"]


@contextmanager
def own_randomness(seed: int, name: str, device: torch.device | str) -> Iterator[torch.Generator]:
    """Run an attack under random states of its own; the global ones come back.

    First weights, and the noise that a defence draws inside the model, come from the global state: seeded here, they are a
    function of the attack's seed.

    Args:
        seed: Of the attack.
        name: What is being done, so that two parts of an attack draw different numbers.
        device: Where the attack runs.

    Returns:
        A CPU generator for everything else that is drawn.

    Example:
        >>> before = torch.get_rng_state()
        >>> with own_randomness(0, "example", "cpu") as g:
        ...     first = torch.rand(1), torch.rand(1, generator=g)
        >>> bool((before == torch.get_rng_state()).all())
        True
    """
    place = torch.device(device)
    number = derive_seed(seed, name)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.default_generator.manual_seed(number)
        if place.type == "cuda":
            with torch.cuda.device(place):
                torch.cuda.manual_seed(number)
        yield torch.Generator().manual_seed(derive_seed(number, "draws"))
