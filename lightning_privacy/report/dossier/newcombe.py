"""The interval of a difference of two proportions, which a bootstrap gets wrong where one of them is 0."""

import math

from lightning_privacy.errors import InputError

__all__ = ["newcombe_difference", "wilson"]

_Z = 1.959963984540054  # the normal's 97.5 % point, for two-sided 95 %


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion.

    Args:
        successes: Number of successes, 0 to n.
        n: Number of trials, at least 1.

    Raises:
        InputError: the counts are impossible.

    Example:
        >>> [round(end, 4) for end in wilson(56, 70)]
        [0.6918, 0.877]

    Source:
        E. B. Wilson, Journal of the American Statistical Association 22 (1927) 209.
    """
    _check(successes, n)
    p, z2 = successes / n, _Z * _Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe_difference(successes: tuple[int, int], n: tuple[int, int]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two independent proportions, first minus second.

    Args:
        successes: Successes in either sample.
        n: Trials in either sample, each at least 1.

    Raises:
        InputError: the counts are impossible.

    Example:
        >>> [round(end, 4) for end in newcombe_difference((56, 48), (70, 80))]
        [0.0524, 0.3339]

    Source:
        R. G. Newcombe, Statistics in Medicine 17 (1998) 873, method 10 and table II.
    """
    (l1, u1), (l2, u2) = (wilson(k, trials) for k, trials in zip(successes, n, strict=True))
    p1, p2 = (k / trials for k, trials in zip(successes, n, strict=True))
    low = p1 - p2 - math.hypot(p1 - l1, u2 - p2)
    high = p1 - p2 + math.hypot(u1 - p1, p2 - l2)
    return low, high


def _check(successes: int, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} of {n} is no proportion; give at least one trial and at most as many successes.")
