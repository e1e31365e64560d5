"""What defences and audits ask of a user's LightningModule, and the values that travel between them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Batch = Any
"""Whatever the user's loader yields."""

__all__ = [
    "Batch",
    "Draw",
    "GeneratesImages",
    "HasEmbedding",
    "HasFunctionalLoss",
    "HasLogits",
    "HasPerSampleError",
    "HasPerSampleLoss",
    "HasReference",
    "HasSampleDraw",
]


@dataclass(frozen=True)
class Draw:
    """The random part of one evaluation of a training error; empty for a deterministic model.

    Args:
        timesteps: Diffusion step of each sample, 0 to T - 1.
        noise: Gaussian noise of each sample, in the shape of what it is added to.
    """

    timesteps: Int[Tensor, " batch"] | None = None
    noise: Float[Tensor, "batch ..."] | None = None

    def __getitem__(self, index: Int[Tensor, " n"] | slice) -> "Draw":
        """Return the draws of some of the samples."""
        return Draw(*(None if x is None else x[index] for x in (self.timesteps, self.noise)))

    def to(self, device: torch.device | str) -> "Draw":
        """Return the same draws on another device."""
        return Draw(*(None if x is None else x.to(device) for x in (self.timesteps, self.noise)))


@runtime_checkable
class HasSampleDraw(Protocol):
    """A module that can draw what its training error needs."""

    def sample_draw(self, batch: Batch, generator: torch.Generator) -> Draw:
        """Draw timesteps and noise for a batch; the same generator state gives the same draw."""
        ...


@runtime_checkable
class HasPerSampleError(Protocol):
    """A module that returns its raw training error, one map a sample."""

    def per_sample_error(self, batch: Batch, draw: Draw | None = None) -> Float[Tensor, "batch ..."]:
        """Return the unweighted, unreduced error (squared-error map; plain cross-entropy)."""
        ...


@runtime_checkable
class HasPerSampleLoss(Protocol):
    """A module that returns what its training minimises, unreduced."""

    def per_sample_loss(self, batch: Batch, draw: Draw | None = None) -> Float[Tensor, " batch"]:
        """Return the training loss of each sample."""
        ...


@runtime_checkable
class HasReference(Protocol):
    """A module that can step back to the model before fine-tuning."""

    def reference(self) -> AbstractContextManager[Any]:
        """Return a context under which the module is the model before fine-tuning."""
        ...


@runtime_checkable
class GeneratesImages(Protocol):
    """A module that makes pictures."""

    def generate(
        self, prompts: Sequence[str], *, seed: int = 0, **options: Any
    ) -> Float[Tensor, "batch 3 height width"]:
        """Return one picture a prompt, values in [0, 1]; picture ``i`` depends on ``seed`` and ``i`` alone."""
        ...


@runtime_checkable
class HasLogits(Protocol):
    """A classifier."""

    def logits(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """Return the class scores before the softmax."""
        ...


@runtime_checkable
class HasEmbedding(Protocol):
    """A module that gives features of its inputs."""

    def embedding(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return what the last layer reads."""
        ...


@runtime_checkable
class HasFunctionalLoss(Protocol):
    """A module whose training loss is a function of weights that are passed in, so that many copies train at once."""

    def functional_loss(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch
    ) -> Float[Tensor, ""]:
        """Return the loss that ``training_step`` minimises, with the module's weights replaced; it must not log.

        Args:
            parameters: By the names of the module's ``named_parameters()``.
            buffers: By the names of its ``named_buffers()``; statistics may be updated in place.
            batch: A batch.
        """
        ...
