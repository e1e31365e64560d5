"""Where the noise of a layer comes from: a function of the training step while one runs, else the global random state."""

import torch

from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.errors import InputError

__all__ = ["StepRandomness"]


class StepRandomness:
    """Give a layer generators of noise.

    In a training step noise is a function of a key (seed, process, epoch, batch) and of how often the layer ran in the
    step. So a resumed run draws what the uninterrupted one would have drawn, processes draw different noise, and a
    user's own random stream stays as it was. Outside of a training step, at inference, noise comes from the global
    random state of the tensor's device.

    Example:
        >>> source = StepRandomness()
        >>> source.begin(0, "epoch", 3)
        >>> a = torch.rand(1, generator=source.generator("cpu")); source.begin(0, "epoch", 3)
        >>> torch.equal(a, torch.rand(1, generator=source.generator("cpu")))
        True
        >>> source.end(); print(source.generator("cpu"))
        None
    """

    def __init__(self) -> None:
        self.key: tuple[int | str, ...] | None = None
        self.calls = 0

    def begin(self, *key: int | str) -> None:
        """Enter a training step.

        Args:
            *key: What its noise is a function of.
        """
        self.key, self.calls = key, 0

    def end(self) -> None:
        """Leave the training step."""
        self.key = None

    def generator(self, device: torch.device | str) -> torch.Generator | None:
        """Return the generator for the next draw, None for the global one.

        Args:
            device: Of the tensor that will be drawn.

        Raises:
            InputError: the layer runs again inside the backward pass, where it would draw other noise than in the forward.
        """
        if self.key is None:
            return None
        if torch._C._current_graph_task_id() != -1:
            raise InputError(
                "A layer with noise runs again in the backward pass (activation checkpointing), where it would draw other "
                "noise than before, and gradients would be wrong. Leave that layer out of checkpointing."
            )
        self.calls += 1
        return seeded_generator(*self.key, self.calls, device=device)
