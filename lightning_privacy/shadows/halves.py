"""Who is IN: each pair of shadow models trains on a random half of the records and on the other half."""

from collections.abc import Sequence
from hashlib import sha256

__all__ = ["in_half"]


def in_half(names: Sequence[str], seed: int, shadow: int) -> list[bool]:
    """Return which records a shadow model is trained on.

    Shadow 2j takes the first half of the names in the order of sha256(seed, j, name), shadow 2j + 1 the rest, so that
    among an even number of shadows every record is IN exactly half of them, and a larger number changes none.

    Args:
        names: Name of each record; equal names (equal content) are on the same side.
        seed: Of the pool of shadows.
        shadow: Number of the shadow model, from 0.

    Example:
        >>> [in_half(["a", "b", "c", "c"], 0, shadow) for shadow in (0, 1)]
        [[True, False, False, False], [False, True, True, True]]

    Source:
        arXiv 2112.03570, section V-B, where each record is likewise IN half of the shadow models.
    """
    pair, second = divmod(shadow, 2)

    def key(name: str) -> str:
        return sha256(f"{seed}:{pair}:{name}".encode()).hexdigest()

    ordered = sorted(set(names), key=key)
    first_half = set(ordered[: len(ordered) // 2])
    return [(name in first_half) != bool(second) for name in names]
