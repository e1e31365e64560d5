"""A secret's numbers among the numbers of a text or a list, as exactly as they were printed."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from lightning_privacy.secrets.distinctness import search_starts
from lightning_privacy.secrets.targets import TensorTarget

__all__ = ["holds_numbers", "numbers_in"]

_NUMBER = re.compile(rb"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w])")
_RUNS = 64  # chosen here, of a secret
_PRINTED = 6e-5  # PyTorch prints four decimals
_RELATIVE = 1e-4  # or five digits
_RESOLUTION = (
    0.01  # of the secret's deviation, chosen here: where all its numbers would print as 0.0000, nothing is said
)


def numbers_in(text: bytes) -> Float[NDArray[np.float64], " n"]:
    """Return the numbers of a text in their order.

    Args:
        text: Printable bytes.

    Example:
        >>> numbers_in(b"w: tensor([ 1., -0.5000], 2e-3)").tolist()
        [1.0, -0.5, 0.002]
    """
    return np.array([float(found) for found in _NUMBER.findall(text)], np.float64)


def holds_numbers(numbers: Float[NDArray[np.float64], " n"], targets: Sequence[TensorTarget]) -> list[str]:
    """Return the names of the secrets of which a run of numbers stands in a sequence.

    Args:
        numbers: The sequence.
        targets: The secrets.
    """
    return [target.name for target in targets if len(numbers) >= target.run and _holds(numbers, target)]


def _holds(numbers: NDArray[np.float64], target: TensorTarget) -> bool:
    slack = min(_PRINTED, _RESOLUTION * float(target.values.std()))
    for start in search_starts(target.values, target.run, _RUNS):
        run = target.values[start : start + target.run]
        places = np.arange(len(numbers) - target.run + 1)
        for i, value in enumerate(run):
            places = places[np.abs(numbers[places + i] - value) <= slack + _RELATIVE * abs(value)]
            if not len(places):
                break
        if len(places):
            return True
    return False
