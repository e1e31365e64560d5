"""A keyed order of values, read out of the locked model's first layer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.lock.block_reading import LARGEST, block_weights, shown_blocks
from lightning_privacy.attacks.lock.descent import train_best
from lightning_privacy.attacks.lock.plane import plane_layout
from lightning_privacy.attacks.lock.target import Cost, Edit, LockedModel, OwnPictures, Unlocked, accuracy_of
from lightning_privacy.core.randomness import seeded_generator

__all__ = ["WeightLayout"]

Places = Float[Tensor, "values 2"]
_ANGLES = 24  # of the layout that are tried, and as many of its mirror image; chosen here
_BATCH = 32


class _Guess(NamedTuple):
    """Where each value is taken from, in the block's own coordinates from -1 to 1, and how well that classifies."""

    places: Places
    loss: float


@dataclass(frozen=True)
class WeightLayout:
    """Lays out the values that the first layer reads by how alike it weighs them, and shows it pictures in that order.

    No pair is needed: that neighbouring pixels are alike is enough to see which values are neighbours (`plane_layout`).
    Which way round the layout is, and how it is distorted, the labelled pictures say: rotations and mirror images are tried,
    then a smooth warp is trained on them, and at last the stolen weights behind it. The value at a place is the mean of its
    channels. Only a first layer that reads whole blocks of pixels, as in `block_mlp` and vision transformers, is read; with
    another the attack is `no_key`.

    Args:
        shared: Candidates for the common neighbours of `plane_layout`.
        waves: Candidates for the warp's cosines along each axis; 0 leaves the layout as it is.
        steps: Of the warp's training, for each candidate.
        rate: Its learning rate.
        starts: Layouts whose warp is trained.
        tune_rates: Candidates for the learning rate of the weights' training; none trains no weights.
        tune_steps: Of that training, for each rate.
    """

    name: ClassVar[str] = "weight_layout"
    access: ClassVar[str] = "weights and labelled raw pictures"
    shared: Sequence[int] = (3, 4, 5)
    waves: Sequence[int] = (0, 4, 6)
    steps: int = 150
    rate: float | int = 5e-3
    starts: int = 2
    tune_rates: Sequence[float] = (3e-4,)  # chosen here: more forgets what was stolen
    tune_steps: int = 120

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the order that was read; see `LockAttack`."""
        network = model.copy().eval().requires_grad_(False)
        found = block_weights(network, own.images)
        if found is None:
            return _raw(model, own, f"the first layer reads no blocks of at most {LARGEST} values")
        weights, side = found
        guesses = sorted(self._turned(network, weights, side, own, seed), key=lambda guess: guess.loss)[: self.starts]
        if not guesses:
            return _raw(model, own, "the first layer's weights show no neighbours")
        best: tuple[tuple[float, float], str, Callable[[Tensor], Tensor]] | None = None
        for waves in self.waves:
            for guess in guesses:
                places = guess.places if waves == 0 else self._warped(network, guess.places, side, waves, own, seed)

                def edit(x: Tensor, places: Places = places) -> Tensor:
                    return shown_blocks(x, places, side)

                with torch.no_grad():
                    loss = float(F.cross_entropy(network(edit(own.val_images)).float(), own.val_labels))
                reached = accuracy_of(lambda x, edit=edit: model.scores(edit(x)), own.val_images, own.val_labels)
                if best is None or (reached, -loss) > best[0]:
                    best = (reached, -loss), f"blocks of {side}, {waves} waves", edit
        if best is None:
            raise ValueError("WeightLayout needs at least one number of `waves`")
        steps = self.steps * len(guesses) * sum(waves > 0 for waves in self.waves)
        cost = Cost(labels=len(own.images), queries=len(own.val_images) * len(self.waves) * len(guesses), steps=steps)
        (reached, least), chosen, show = best
        plain = Unlocked(lambda x: model.scores(show(x)), reached, cost, chosen, edit=show)
        return self._tuned(model, own, show, plain, -least, seed)

    def _tuned(
        self, model: LockedModel, own: OwnPictures, show: Edit, plain: Unlocked, loss: float, seed: int
    ) -> Unlocked:
        """Return the better of the stolen weights and those fine-tuned on the pictures as they are shown."""
        best, reached = plain, (plain.own_accuracy, -loss)
        cost = replace(plain.cost, steps=plain.cost.steps + self.tune_steps * len(self.tune_rates))
        shown, val = show(own.images), (show(own.val_images), own.val_labels)
        for rate in self.tune_rates:
            network = model.copy()

            def entropy(rows: Tensor, network: nn.Module = network) -> Tensor:
                return F.cross_entropy(network(shown[rows]).float(), own.labels[rows])

            made = train_best(
                network, entropy, len(shown), network, val, rate=rate, steps=self.tune_steps, batch=16, seed=seed
            )
            if (made.accuracy, -made.loss) > reached:
                reached, chosen = (made.accuracy, -made.loss), f"{plain.chosen}, fine-tuned at {rate:g}"
                classify = _behind(made.network, show)
                best = Unlocked(classify, made.accuracy, cost, chosen, made.converged, edit=show)
        return replace(best, cost=cost)

    def _turned(self, network: nn.Module, weights: Tensor, side: int, own: OwnPictures, seed: int) -> Iterator[_Guess]:
        for shared in self.shared:
            places, placed = plane_layout(weights, shared, seed)
            if placed.double().mean() < 0.5:
                continue  # fell apart: what is left says nothing of the whole
            for turn in range(_ANGLES):
                angle = 2 * math.pi * turn / _ANGLES
                rotation = places.new_tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                for mirror in (1.0, -1.0):
                    # evenly spread over -1 to 1, coordinates would have this standard deviation
                    turned = (places * places.new_tensor([1.0, mirror])) @ rotation.T / math.sqrt(3)
                    with torch.no_grad():
                        scores = network(shown_blocks(own.images, turned, side)).float()
                    yield _Guess(turned, float(F.cross_entropy(scores, own.labels)))

    def _warped(self, network: nn.Module, places: Places, side: int, waves: int, own: OwnPictures, seed: int) -> Places:
        order = torch.arange(waves, device=places.device)
        along = [torch.cos(math.pi / 2 * order * (axis[:, None] + 1)) for axis in places.unbind(1)]
        basis = (along[0][:, :, None] * along[1][:, None]).flatten(1)
        warp = torch.zeros(waves * waves, 2, dtype=places.dtype, device=places.device, requires_grad=True)
        optimizer = torch.optim.Adam([warp], lr=self.rate)
        generator = seeded_generator(seed, self.name)
        for _ in range(self.steps):
            rows = torch.randperm(len(own.images), generator=generator)[:_BATCH]
            scores = network(shown_blocks(own.images[rows], places + basis @ warp, side)).float()
            loss = F.cross_entropy(scores, own.labels[rows]) + 1e-2 * warp.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (places + basis @ warp).detach()


def _behind(network: nn.Module, show: Edit) -> Callable[[Tensor], Tensor]:
    return lambda x: network(show(x))


def _raw(model: LockedModel, own: OwnPictures, reason: str) -> Unlocked:
    reached = accuracy_of(model.scores, own.val_images, own.val_labels)
    return Unlocked(model.scores, reached, Cost(queries=len(own.val_images)), reason)
