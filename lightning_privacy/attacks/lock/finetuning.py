"""Training the stolen weights on a few labelled raw pictures, and the same network without them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_privacy.attacks.lock.descent import Trained, train_best
from lightning_privacy.attacks.lock.target import Cost, LockedModel, OwnPictures, Unlocked

__all__ = ["FineTune", "HeadTune", "Scratch"]

_RATES = (3e-4, 1e-3, 3e-3)  # candidates, chosen here; the attacker's own pictures choose
_STEPS = 200  # chosen here


def _best(make: Callable[[], nn.Module], own: OwnPictures, seed: int, rates: Sequence[float], steps: int) -> Unlocked:
    tried: dict[float, Trained] = {}
    for rate in rates:
        network = make()

        def loss(rows: Tensor, network: nn.Module = network) -> Tensor:
            return F.cross_entropy(network(own.images[rows]).float(), own.labels[rows])

        val = (own.val_images, own.val_labels)
        tried[rate] = train_best(
            network, loss, len(own.images), network, val, rate=rate, steps=steps, batch=16, seed=seed
        )
    rate = max(tried, key=lambda each: (tried[each].accuracy, -tried[each].loss))
    best = tried[rate]
    cost = Cost(labels=len(own.images), steps=steps * len(rates))
    return Unlocked(best.network, best.accuracy, cost, f"learning rate {rate:g}", best.converged)


@dataclass(frozen=True)
class FineTune:
    """Fine-tunes all stolen weights.

    Args:
        steps: Of training, for each rate.
        rates: Candidates for the learning rate.
    """

    name: ClassVar[str] = "fine_tune"
    access: ClassVar[str] = "weights and labelled raw pictures"
    steps: int = _STEPS
    rates: Sequence[float] = _RATES

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the fine-tuned copy; see `LockAttack`."""
        return _best(model.copy, own, seed, self.rates, self.steps)


@dataclass(frozen=True)
class HeadTune:
    """Trains the stolen model's last linear layer alone.

    Args:
        steps: Of training, for each rate.
        rates: Candidates for the learning rate.
    """

    name: ClassVar[str] = "head_tune"
    access: ClassVar[str] = "weights and labelled raw pictures"
    steps: int = _STEPS
    rates: Sequence[float] = (1e-3, 1e-2)

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the copy with another head; see `LockAttack`."""

        def make() -> nn.Module:
            network = model.copy()
            heads = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == model.classes]
            for weight in network.parameters():
                weight.requires_grad_(False)
            for weight in (heads[-1] if heads else network).parameters(recurse=not heads):
                weight.requires_grad_(True)
            return network

        return _best(make, own, seed, self.rates, self.steps)


@dataclass(frozen=True)
class Scratch:
    """Trains the same network from random weights: what the pictures are worth without the stolen model. A reference.

    Args:
        steps: Of training, for each rate.
        rates: Candidates for the learning rate.
    """

    name: ClassVar[str] = "scratch"
    access: ClassVar[str] = "labelled raw pictures and no model"
    steps: int = _STEPS
    rates: Sequence[float] = _RATES

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the network trained from scratch; see `LockAttack`."""
        return _best(lambda: model.fresh(seed), own, seed, self.rates, self.steps)
