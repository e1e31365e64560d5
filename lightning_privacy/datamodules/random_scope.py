"""Reading records without touching, or depending on, the global random state."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lightning_privacy.core.randomness import derive_seed

__all__ = ["own_random_state"]


@contextmanager
def own_random_state(*key: int | str) -> Iterator[None]:
    """Give the block a CPU random state that is a function of the key, and restore the old one afterwards.

    Covers torch (CPU), numpy and Python, which is what augmentations draw from. Whatever a defence or an audit reads in
    such a block leaves the training's random stream as it was.

    Args:
        *key: Numbers and names that seed the block.

    Yields:
        Nothing.
    """
    old = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002  augmentations use it
    seed = derive_seed(*key)
    # Not torch.manual_seed: that would reseed the accelerators too.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(old[0])
        np.random.set_state(old[1])  # noqa: NPY002
        random.setstate(old[2])
