"""How the defence sees the model's errors, on any batch, now and before fine-tuning."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.callbacks.smp_lora.joined import batch_size, joined_batch, joined_draw
from lightning_privacy.core.defence import require
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError, MissingProtocolError
from lightning_privacy.protocols import Batch, Draw, HasReference

ErrorFn = Callable[[L.LightningModule, Batch, Draw], Tensor]

SNIPPET = """
    def per_sample_error(self, batch, draw=None):
        noisy = self.scheduler.add_noise(batch["x"], draw.noise, draw.timesteps)
        return (self(noisy, draw.timesteps) - draw.noise).square()      # (batch, ...), not reduced

    def sample_draw(self, batch, generator):
        t = torch.randint(0, 1000, (len(batch["x"]),), generator=generator)
        return Draw(t.to(self.device), torch.randn(batch["x"].shape, generator=generator).to(self.device))
"""

__all__ = ["ErrorFn", "ModelObserver"]


class ModelObserver:
    """Evaluate a module's per-sample errors through the protocols, or through functions that the user names.

    Args:
        module: The user's module.
        error_fn: ``error_fn(module, batch, draw) -> (batch, ...)`` in place of ``module.per_sample_error``.
        draw_fn: ``draw_fn(module, batch, generator) -> Draw`` in place of ``module.sample_draw``.
        seed: Of all draws.

    Raises:
        MissingProtocolError: the module has no ``per_sample_error`` and no ``error_fn`` was given.
    """

    def __init__(
        self,
        module: L.LightningModule,
        error_fn: ErrorFn | None = None,
        draw_fn: Callable[[L.LightningModule, Batch, torch.Generator], Draw] | None = None,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        if error_fn is None:
            require(module, "per_sample_error", "SMPLoRA", SNIPPET)
        self._error_fn, self._draw_fn = error_fn, draw_fn

    def draw(self, module: L.LightningModule, batch: Batch, *key: int | str) -> Draw:
        """Return the draw that belongs to a key; an empty one for a deterministic module.

        Every rank draws with the same generator: a module that keys its draws by record (as `StableDiffusionLoRA`
        does) then draws the same for a record on whichever rank it lands.
        """
        generator = seeded_generator(self.seed, *key)
        if self._draw_fn is not None:
            return self._draw_fn(module, batch, generator)
        if hasattr(module, "sample_draw"):
            return module.sample_draw(batch, generator)  # pyright: ignore[reportCallIssue]
        return Draw()

    def error(self, module: L.LightningModule, batch: Batch, draw: Draw) -> Float[Tensor, "batch ..."]:
        """Return the raw error per record, with its graph where gradients are on."""
        if self._error_fn is not None:
            error = self._error_fn(module, batch, draw)
        else:
            error = module.per_sample_error(batch, draw)  # pyright: ignore[reportCallIssue]
        if error.ndim == 0:
            raise InputError(
                "The per-sample error given to SMPLoRA is a single number: it must have one entry (or map) a record. "
                "Leave out the reduction (`reduction='none'`)."
            )
        return error.float()

    def references(
        self, module: L.LightningModule, pairs: Sequence[tuple[Batch, Draw]]
    ) -> list[Float[Tensor, "batch ..."]]:
        """Return the errors of the model before fine-tuning, without a graph, in one forward pass where batches allow it.

        Args:
            module: The user's module.
            pairs: Batches and the draws to measure them on.
        """
        if not pairs:
            return []
        with torch.no_grad(), reference_context(module):
            batch, draw = joined_batch([batch for batch, _ in pairs]), joined_draw([draw for _, draw in pairs])
            if len(pairs) == 1 or batch is None or draw is None:
                return [self.error(module, *pair) for pair in pairs]
            sizes = [batch_size(batch) for batch, _ in pairs]
            return list(self.error(module, batch, draw).split(sizes))


def reference_context(module: L.LightningModule) -> AbstractContextManager[Any]:
    """Return the context under which the module is the model before fine-tuning.

    Raises:
        MissingProtocolError: the module has no ``reference()``.
    """
    if not isinstance(module, HasReference):
        raise MissingProtocolError(
            f"The proxy input `calibrated` compares with the model before fine-tuning, but {type(module).__name__} has no "
            "`reference()`. Add a context manager that switches the adapter off, or use `proxy: error_map`."
        )
    return module.reference()
