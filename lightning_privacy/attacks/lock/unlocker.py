"""A small network in place of the secret edit: learned from pairs, or through the frozen model from labels alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.lock.descent import Trained, train_best
from lightning_privacy.attacks.lock.target import Cost, LockedModel, OwnPictures, Unlocked
from lightning_privacy.errors import InputError

__all__ = ["EditNetwork", "LabelUnlocker", "PairUnlocker"]

_BATCH = 16


class EditNetwork(nn.Module):
    """Pictures to pictures: a two-level U-Net that begins as the identity.

    Args:
        channels: Of the pictures.
        width: Of its first layer.
    """

    def __init__(self, channels: int, width: int = 24) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.leave = nn.Conv2d(2 * width, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias if self.leave.bias is not None else torch.zeros(1))

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n channels height width"]:
        """Return changed pictures in [0, 1].

        Args:
            images: In [0, 1].
        """
        flat = F.gelu(self.enter(images))
        deep = F.gelu(self.deep(F.gelu(self.down(flat))))
        raised = F.interpolate(F.gelu(self.up(deep)), size=images.shape[-2:], mode="nearest")
        return (images + self.leave(torch.cat([flat, raised], 1))).clamp(0, 1)


def _learn(
    model: LockedModel,
    own: OwnPictures,
    loss: Callable[[nn.Module, Tensor], Tensor],
    rates: Sequence[float],
    steps: int,
    seed: int,
    cost: Cost,
) -> Unlocked:
    tried: dict[float, Trained] = {}
    for rate in rates:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = EditNetwork(own.images.shape[1]).to(own.images.device)
        tried[rate] = train_best(
            network,
            partial(loss, network),
            len(own.images),
            lambda x, network=network: model.scores(network(x)),
            (own.val_images, own.val_labels),
            rate=rate,
            steps=steps,
            batch=_BATCH,
            seed=seed,
        )
    rate = max(tried, key=lambda each: (tried[each].accuracy, -tried[each].loss))
    best = tried[rate]

    def edit(x: Tensor) -> Tensor:
        with torch.no_grad():
            return best.network(x)

    chosen = f"learning rate {rate:g}"
    return Unlocked(lambda x: model.scores(edit(x)), best.accuracy, cost, chosen, best.converged, edit)


@dataclass(frozen=True)
class PairUnlocker:
    """Learns the edit from pictures seen raw and edited.

    Args:
        steps: Of training, for each rate.
        rates: Candidates for the learning rate.
    """

    name: ClassVar[str] = "pair_unlocker"
    access: ClassVar[str] = "queries and pairs of raw and edited pictures"
    steps: int = 400  # chosen here
    rates: Sequence[float] = (1e-3, 3e-3)

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the learned edit; see `LockAttack`.

        Raises:
            InputError: there are no pairs.
        """
        if own.edited is None:
            raise InputError("An unlocker learned from pairs needs pairs, and the attacker has none.")
        edited = own.edited
        cost = Cost(pairs=len(edited), steps=self.steps * len(self.rates))

        def loss(network: nn.Module, rows: Tensor) -> Tensor:
            return F.l1_loss(network(own.images[rows]), edited[rows])

        return _learn(model, own, loss, self.rates, self.steps, seed, cost)


@dataclass(frozen=True)
class LabelUnlocker:
    """Learns an edit through the frozen model, from labelled raw pictures alone.

    Args:
        steps: Of training, for each rate.
        rates: Candidates for the learning rate.
    """

    name: ClassVar[str] = "label_unlocker"
    access: ClassVar[str] = "weights and labelled raw pictures"
    steps: int = 400  # chosen here
    rates: Sequence[float] = (1e-3, 3e-3)

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the learned edit; see `LockAttack`."""
        cost = Cost(labels=len(own.images), steps=self.steps * len(self.rates))

        def loss(network: nn.Module, rows: Tensor) -> Tensor:
            return F.cross_entropy(model.scores(network(own.images[rows])).float(), own.labels[rows])

        return _learn(model, own, loss, self.rates, self.steps, seed, cost)
