"""How many numbers in a row tell a secret from anything else, and which runs of it are worth a search."""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

__all__ = ["search_starts", "window_length"]

_ENOUGH = 64.0  # bits, chosen here: below one chance match in 2^64 positions
_LEAST = 40.0  # bits, chosen here, for a secret that is shorter than that
_GENERIC = 10.0  # bits of a number whose digits are arbitrary: what half precision keeps of its mantissa
_SHORTEST = 8  # numbers, chosen here: 16 bytes in half precision
_CHANGES = 0.25  # of the neighbours in a run that must differ, chosen here: half of them do in a key of -1 and 1


def window_length(values: Float[NDArray[np.float64], " n"]) -> int | None:
    """Return how many consecutive numbers of a secret are looked for, or None where all of them tell nothing.

    Args:
        values: The secret's numbers.

    Example:
        >>> window_length(np.random.default_rng(0).normal(size=1024)), window_length(np.ones(1024))
        (8, None)
        >>> window_length(np.sign(np.random.default_rng(0).normal(size=1024)))
        65
    """
    if not np.isfinite(values).all():
        return None
    bits = _bits_a_number(values)
    if bits * len(values) < _LEAST:
        return None
    return min(len(values), max(_SHORTEST, math.ceil(_ENOUGH / bits)))


def search_starts(values: Float[NDArray[np.float64], " n"], length: int, most: int) -> list[int]:
    """Return where runs begin that are looked for: side by side, so that any longer piece of the secret holds one.

    Args:
        values: The secret's numbers.
        length: Of a run.
        most: At most so many, evenly spread, the first and the last among them.
    """
    starts = list(range(0, len(values) - length + 1, length))
    if starts[-1] + length < len(values):
        starts.append(len(values) - length)
    if len(starts) > most:
        starts = [starts[i] for i in np.unique(np.linspace(0, len(starts) - 1, most).astype(int))]
    runs = np.lib.stride_tricks.sliding_window_view(values, length)[starts]
    changes = (np.diff(runs, axis=1) != 0).sum(1)  # of a run of zeros in a sparse secret: none
    return [s for s, telling in zip(starts, changes >= length * _CHANGES, strict=True) if telling]


def _bits_a_number(values: NDArray[np.float64]) -> float:
    # a mantissa whose low bits are not zero was measured or drawn, not chosen (0.5, 1, 3)
    arbitrary = (values.astype(np.float32).view(np.uint32) & 0xFFF) != 0
    several = len(np.unique(values)) >= len(values) / 2
    if several and arbitrary.mean() >= 0.5:
        return _GENERIC
    return min(_entropy(values), _GENERIC)


def _entropy(values: NDArray[np.float64]) -> float:
    """Return the bits a number of the values' empirical distribution."""
    share = np.unique(values, return_counts=True)[1] / max(len(values), 1)
    return float(-(share * np.log2(share)).sum())
