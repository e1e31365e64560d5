"""Building a shadow model: the caller's function, under a random state of its own."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.distributed as dist
import torchmetrics
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_privacy.core.defence import Defence
from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.core.stack import DefenceStack
from lightning_privacy.errors import InputError

__all__ = ["Build", "build_shadow", "rebuild_layers", "seeded", "shadow_seed"]

Build = Callable[[int], tuple[L.LightningModule, Sequence[L.Callback]]]
"""Makes an untrained module and its defences (none, or fresh ones: see `Defence.fresh`) from a seed."""


def shadow_seed(seed: int, shadow: int) -> int:
    """Return the seed of one shadow model, below 2^31 because NumPy takes no more than 32 bits."""
    return derive_seed("shadow", seed, shadow) % 2**31


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Give the block global random states from a seed; the caller's come back."""
    with isolate_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the global state is what user code draws from
        torch.manual_seed(seed)
        yield


def build_shadow(build: Build, seed: int) -> tuple[L.LightningModule, list[L.Callback]]:
    """Return an untrained module and its defences; a function of the seed.

    Args:
        build: The caller's function.
        seed: Of this shadow model.

    Raises:
        InputError: it returned something else.
    """
    with seeded(seed):
        made: Any = build(seed)
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], L.LightningModule):
        raise InputError(
            f"The build function of the shadow models returned a {type(made).__name__}; it must return a "
            "LightningModule and a list of its defences: `return module, [each.fresh() for each in defences]`."
        )
    module, callbacks = made[0], list(made[1])
    for part in module.modules():
        if isinstance(part, torchmetrics.Metric):
            # A metric would wait for the other ranks, which are training other shadows.
            part.distributed_available_fn = _not_distributed
    if dist.is_available() and dist.is_initialized() and is_overridden("prepare_data", module):
        # Called here, because Lightning would hold a barrier of all ranks around it.
        module.prepare_data()
        module.prepare_data = MethodType(L.LightningModule.prepare_data, module)
    return module, callbacks


def _not_distributed() -> bool:
    return False


def rebuild_layers(module: L.LightningModule, callbacks: Sequence[L.Callback]) -> None:
    """Bring a built module into the form in which it is trained: its own ``configure_model``, then every surgery."""
    defences = [callback for callback in callbacks if isinstance(callback, Defence)]
    if defences:
        DefenceStack(defences).configure_model(module)
    else:
        module.configure_model()
