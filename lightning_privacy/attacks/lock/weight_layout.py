"""A keyed order of values, read out of the locked model's first layer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_privacy.attacks.lock.plane import plane_layout
from lightning_privacy.attacks.lock.target import Cost, LockedModel, OwnPictures, Unlocked, accuracy_of
from lightning_privacy.core.randomness import seeded_generator
from lightning_privacy.editors.blocks import from_blocks, to_blocks

__all__ = ["WeightLayout", "block_weights"]

Places = Float[Tensor, "values 2"]
_LARGEST = 2**14  # values of a block beyond which it is not tried: their square is computed
_ANGLES = 24  # of the layout that are tried, and as many of its mirror image; chosen here
_BATCH = 32


def block_weights(network: nn.Module, images: Float[Tensor, "n channels height width"]) -> tuple[Tensor, int] | None:
    """Return the weights of a network's first layer if it reads whole blocks of pixels, and the block's side.

    Args:
        network: Pictures -> class scores.
        images: A few pictures, to see what the layers are given.

    Returns:
        A row of weights a value of the block, in the order of `to_blocks`; None where the first layer is another.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.Flatten(), nn.Linear(20, 2))
        >>> weights, side = block_weights(net, torch.zeros(1, 3, 8, 8))
        >>> weights.shape, side
        (torch.Size([48, 5]), 4)
    """
    first: list[tuple[Tensor, int]] = []
    channels, height, width = images.shape[1:]

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Conv2d):
            side = layer.kernel_size[0]
            whole = layer.kernel_size == layer.stride == (side, side) and side > 1 and layer.groups == 1
            seen.append(layer)
            if len(seen) == 1 and whole and layer.in_channels == channels:
                first.append((layer.weight.detach().flatten(1).T, side))
        elif isinstance(layer, nn.Linear):
            seen.append(layer)
            if len(seen) == 1 and height == width and given[0].flatten(1).shape[1] == channels * height * width:
                first.append((layer.weight.detach().T, height))

    seen: list[nn.Module] = []
    hooks = [layer.register_forward_pre_hook(look) for layer in network.modules()]
    try:
        with torch.no_grad():
            network(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return first[0] if first and len(first[0][0]) <= _LARGEST else None


class _Guess(NamedTuple):
    """Where each value is taken from, in the block's own coordinates from -1 to 1, and how well that classifies."""

    places: Places
    loss: float


@dataclass(frozen=True)
class WeightLayout:
    """Lays out the values that the first layer reads by how alike it weighs them, and shows it pictures in that order.

    No pair is needed: that neighbouring pixels are alike is enough to see which values are neighbours (`plane_layout`).
    Which way round the layout is, and how it is distorted, the labelled pictures say: rotations and mirror images are tried,
    then a smooth warp is trained on them. The value at a place is the mean of its channels. Only a first layer that reads
    whole blocks of pixels, as in `block_mlp` and vision transformers, is read; with another the attack is `no_key`.

    Args:
        shared: Candidates for the common neighbours of `plane_layout`.
        waves: Candidates for the warp's cosines along each axis; 0 leaves the layout as it is.
        steps: Of the warp's training, for each candidate.
        rate: Its learning rate.
        starts: Layouts whose warp is trained.
    """

    name: ClassVar[str] = "weight_layout"
    access: ClassVar[str] = "weights and labelled raw pictures"
    shared: Sequence[int] = (3, 4, 5)
    waves: Sequence[int] = (0, 4, 6)
    steps: int = 150
    rate: float | int = 5e-3
    starts: int = 2

    def unlock(self, model: LockedModel, own: OwnPictures, seed: int) -> Unlocked:
        """Return the model behind the order that was read; see `LockAttack`."""
        network = model.copy().eval().requires_grad_(False)
        found = block_weights(network, own.images)
        if found is None:
            return _raw(model, own, f"the first layer reads no blocks of at most {_LARGEST} values")
        weights, side = found
        guesses = sorted(self._turned(network, weights, side, own, seed), key=lambda guess: guess.loss)[: self.starts]
        if not guesses:
            return _raw(model, own, "the first layer's weights show no neighbours")
        best: tuple[tuple[float, float], str, Callable[[Tensor], Tensor]] | None = None
        for waves in self.waves:
            for guess in guesses:
                places = guess.places if waves == 0 else self._warped(network, guess.places, side, waves, own, seed)

                def edit(x: Tensor, places: Places = places) -> Tensor:
                    return _shown(x, places, side)

                with torch.no_grad():
                    loss = float(F.cross_entropy(network(edit(own.val_images)).float(), own.val_labels))
                reached = accuracy_of(lambda x, edit=edit: model.scores(edit(x)), own.val_images, own.val_labels)
                if best is None or (reached, -loss) > best[0]:
                    best = (reached, -loss), f"blocks of {side}, {waves} waves", edit
        if best is None:
            raise ValueError("WeightLayout needs at least one number of `waves`")
        steps = self.steps * len(guesses) * sum(waves > 0 for waves in self.waves)
        (reached, _), chosen, show = best
        cost = Cost(labels=len(own.images), queries=len(own.val_images) * len(self.waves) * len(guesses), steps=steps)
        return Unlocked(lambda x: model.scores(show(x)), reached, cost, chosen, edit=show)

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
                        scores = network(_shown(own.images, turned, side)).float()
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
            scores = network(_shown(own.images[rows], places + basis @ warp, side)).float()
            loss = F.cross_entropy(scores, own.labels[rows]) + 1e-2 * warp.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (places + basis @ warp).detach()


def _raw(model: LockedModel, own: OwnPictures, reason: str) -> Unlocked:
    reached = accuracy_of(model.scores, own.val_images, own.val_labels)
    return Unlocked(model.scores, reached, Cost(queries=len(own.val_images)), reason)


def _shown(images: Float[Tensor, "n channels height width"], places: Places, side: int) -> Tensor:
    """Return pictures whose blocks hold, value by value, what lies at the places in the raw block."""
    rows = to_blocks(images, side)
    n, blocks, values = rows.shape
    cut = rows.reshape(n * blocks, images.shape[1], side, side).mean(1, keepdim=True)
    grid = places.flip(1)[None, None].expand(len(cut), 1, values, 2)  # grid_sample wants x before y
    taken = F.grid_sample(cut, grid.to(cut), padding_mode="border", align_corners=False)
    return from_blocks(taken.reshape(n, blocks, values), (images.shape[-2], images.shape[-1]), side)
