"""A share of counted records with its exact interval."""

from lightning_privacy.core.results import Metric
from lightning_privacy.errors import InputError
from lightning_privacy.metrics.functional.binomial import clopper_pearson

__all__ = ["share"]


def share(count: int, n: int, level: float = 0.95) -> Metric:
    """Return count / n with the exact (Clopper-Pearson) interval; not valid where there is nothing to count.

    Args:
        count: Records that have the property, 0 to ``n``.
        n: Records looked at.
        level: Of the two-sided interval.

    Raises:
        InputError: ``count`` is not in [0, n].

    Example:
        >>> found = share(0, 100)
        >>> found.value, round(found.high, 4)
        (0.0, 0.0362)

    Source:
        Clopper and Pearson, Biometrika 26 (1934).
    """
    if not 0 <= count <= n:
        raise InputError(f"A share of {n} records cannot count {count} of them.")
    if n == 0:
        return Metric(0.0, 0.0, 1.0, valid=False, reason="there is no record to count")
    low, high = clopper_pearson(count, n, level)
    return Metric(count / n, float(low), float(high))
