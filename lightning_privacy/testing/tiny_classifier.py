"""A small classifier with every protocol, for defences that read layers, logits and labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.core.batches import images_of
from lightning_privacy.modules.classifier import ImageClassifier

__all__ = ["TinyClassifier"]


class TinyClassifier(ImageClassifier):
    """`ImageClassifier` with ``small_cnn`` for 8-pixel pictures of 4 classes, built at once, and an adapter.

    Its layers are ``network.conv1``, ``network.conv2``, ``network.head`` and, through which the logits pass, ``scores``.
    `reference` switches the adapter off, a linear layer from pixels to scores that starts at zero.

    Args:
        width: Channels of the first convolution.
        seed: Of the weights.
    """

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        # SGD with momentum: state to restore, and no division that would blow up rounding.
        optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
        super().__init__(
            "small_cnn", classes=4, image_size=8, network_args={"width": width}, optimizer=optimizer, seed=seed
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.configure_model()
            self.adapter, self._adapted = nn.Linear(3 * 8 * 8, 4, bias=False), True
        nn.init.zeros_(self.adapter.weight)
        self.scores: nn.Module = nn.Identity()

    def logits(self, batch: Any) -> Float[Tensor, "batch classes"]:
        """Return the class scores, with the adapter where it is on."""
        scores = super().logits(batch)
        return self.scores(scores + self.adapter(images_of(batch).flatten(1)) if self._adapted else scores)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off."""
        self._adapted = False
        try:
            yield
        finally:
            self._adapted = True
