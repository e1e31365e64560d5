"""Moved and mirrored copies of the attacker's own pictures, and what the model makes of them."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_privacy.attacks.inversion.observing import observe_all
from lightning_privacy.attacks.inversion.target import InversionTarget

__all__ = ["ObservedViews", "moved_copies"]

_KEPT_BYTES = 512 * 2**20  # of observations; chosen here


def moved_copies(
    pictures: Float[Tensor, "n channels height width"], shift: int, flip: bool, generator: torch.Generator
) -> Float[Tensor, "n channels height width"]:
    """Return each picture moved by up to some pixels and mirrored half of the times; edges are repeated.

    Args:
        pictures: Values in [0, 1].
        shift: Largest move in pixels, along each side.
        flip: Mirror left and right.
        generator: On the CPU.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> moved_copies(x, 0, False, torch.Generator()).equal(x)
        True
    """
    n, _, height, width = pictures.shape
    right, down = torch.randint(-shift, shift + 1, (2, n), generator=generator).to(pictures.device)
    columns = torch.arange(width, device=pictures.device).expand(n, width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator).to(pictures.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    columns = (columns + right[:, None]).clamp(0, width - 1)
    rows = (torch.arange(height, device=pictures.device) + down[:, None]).clamp(0, height - 1)
    place = torch.arange(n, device=pictures.device)[:, None, None]
    return pictures.permute(0, 2, 3, 1)[place, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


class ObservedViews:
    """Endless batches of (observation, picture) over several views of the attacker's pictures, the first as they are.

    Each epoch shows one view. Where the model answers alike each time, a view is observed once, and there are only as many
    views as half a gibibyte of observations holds: asking a slow model again and again would help less than more pictures.
    Where a defence draws noise, every epoch observes anew, so that a decoder learns the expectation over the noise.

    Args:
        target: The model.
        pictures: Values in [0, 1].
        views: Views at most, at least 1; 1 moves nothing.
        shift: Largest move in pixels.
        flip: Mirror half of the moved pictures.
        fixed: Whether the model answers alike each time.
        batch_size: Pictures a batch.
        generator: On the CPU.
    """

    def __init__(
        self,
        target: InversionTarget,
        pictures: Float[Tensor, "n channels height width"],
        views: int,
        shift: int,
        flip: bool,
        fixed: bool,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self.target, self.own, self.shift, self.flip = target, pictures, shift, flip
        self.fixed, self.batch_size, self.generator = fixed, batch_size, generator
        # Moved pictures are made again from these when their turn comes: all of them at once would not fit memory.
        self._seeds = torch.randint(2**31, (views,), generator=generator).tolist()
        self._kept: dict[int, Tensor] = {}
        self.first = self.observed(0)
        if fixed:
            size = self.first.numel() * self.first.element_size()
            self._seeds = self._seeds[: max(1, _KEPT_BYTES // size)]

    def pictures(self, view: int) -> Float[Tensor, "n channels height width"]:
        """Return a view's pictures."""
        if view == 0:
            return self.own
        return moved_copies(self.own, self.shift, self.flip, torch.Generator().manual_seed(self._seeds[view]))

    def observed(self, view: int) -> Float[Tensor, "n ..."]:
        """Return what the model makes of a view."""
        if view in self._kept:
            return self._kept[view]
        found = observe_all(self.target, self.pictures(view))
        if self.fixed:
            self._kept[view] = found
        return found

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches for ever; what does not fill one is left out of its epoch, unless it is all there is."""
        epoch = 0
        while True:
            view = epoch % len(self._seeds)
            pictures, observed = self.pictures(view), self.observed(view)
            order = torch.randperm(len(pictures), generator=self.generator).to(pictures.device)
            whole = max(len(order) // self.batch_size, 1) * self.batch_size
            for rows in order[:whole].split(self.batch_size):
                yield observed[rows], pictures[rows]
            epoch += 1
