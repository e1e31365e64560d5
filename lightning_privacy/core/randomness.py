"""Seeds derived from names and counters, so that nothing depends on rank count, order or the global random state."""

import hashlib
from operator import index
from typing import SupportsIndex

import torch

__all__ = ["derive_seed", "seeded_generator"]


def derive_seed(*parts: SupportsIndex | str) -> int:
    """Return a 63-bit seed that is a function of its parts alone.

    Args:
        *parts: Numbers and names, e.g. ``(run seed, "proxy", step)``.

    Example:
        >>> derive_seed(0, "proxy", 1) == derive_seed(0, "proxy", 1) != derive_seed(0, "proxy", 2)
        True
    """
    plain = tuple(part if isinstance(part, str) else index(part) for part in parts)  # NumPy integers print otherwise
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(*parts: SupportsIndex | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded with `derive_seed` of the parts."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))
