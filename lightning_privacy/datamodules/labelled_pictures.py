"""Labelled pictures in memory, and the loader that a labelled datamodule trains from."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.identity import record_number
from lightning_privacy.datamodules.resumable_loader import rank_and_world, resumable_loader

__all__ = ["LabelledPictures", "Move", "draw_move", "shift_and_mirror", "training_loader"]


class Move(NamedTuple):
    """How a picture is moved.

    Args:
        down: First row that is kept of the padded picture.
        right: First column.
        mirrored: Whether left and right are exchanged afterwards.
    """

    down: int
    right: int
    mirrored: bool


def draw_move(shift: int, mirror: bool, generator: np.random.Generator) -> Move:
    """Draw a shift of up to ``shift`` pixels each way and, with probability one half, a mirroring.

    Args:
        shift: Most pixels; 4 on CIFAR-10 (arXiv 1512.03385, section 4.2).
        mirror: Whether it may be mirrored: letters and digits may not.
        generator: Where the three draws come from.
    """
    down, right = generator.integers(0, 2 * shift + 1, 2).tolist()
    coin = generator.random()  # always drawn, so that mirroring leaves the shifts as they are
    return Move(down, right, bool(mirror and coin < 0.5))


def shift_and_mirror(
    image: Float[Tensor, "channels height width"], shift: int, mirror: bool, generator: np.random.Generator
) -> Float[Tensor, "channels height width"]:
    """Move a picture by up to ``shift`` pixels each way, black coming in, and mirror it with probability one half.

    Args:
        image: Values in [0, 1].
        shift: Most pixels; 4 on CIFAR-10 (arXiv 1512.03385, section 4.2).
        mirror: Whether it may be mirrored: letters and digits may not.
        generator: Where the three draws come from.

    Example:
        >>> import torch
        >>> moved = shift_and_mirror(torch.ones(1, 4, 4), 1, False, np.random.default_rng(0))
        >>> moved.sum().item()
        12.0
    """
    height, width = image.shape[1:]
    down, right, mirrored = draw_move(shift, mirror, generator)
    moved = F.pad(image, (shift, shift, shift, shift))[:, down : down + height, right : right + width]
    return moved.flip(2) if mirrored else moved.contiguous()


class LabelledPictures(Dataset[dict[str, Any]]):
    """Pictures in memory; an index that knows its epoch is augmented, a plain one is raw.

    A record's identity is the sha256 of its pixels.

    Args:
        images: All pictures, as bytes.
        labels: Their classes, from 0.
        white: The byte that becomes 1.
        augment: Shift, and mirror where ``mirror``, when the index knows its epoch.
        shift: Most pixels of a shift.
        mirror: Whether half of the augmented pictures are mirrored.
        seed: Augmentation is a function of this, the epoch and the record.

    Example:
        >>> import torch
        >>> data = LabelledPictures(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8), torch.tensor([3, 5]))
        >>> data[1]["label"], round(data[1]["image"].mean().item(), 3)
        (5, 0.2)
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n channels height width"],
        labels: Int[Tensor, " n"],
        white: int = 255,
        augment: bool = False,
        shift: int = 0,
        mirror: bool = False,
        seed: int = 0,
    ) -> None:
        self.images, self.labels, self.white = images.contiguous(), labels.tolist(), white
        self.keyed_by_epoch, self.shift, self.mirror, self.seed = augment, shift, mirror, seed
        self.ids = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.images]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.ids)

    def record_id(self, index: int) -> str:
        """Return the sha256 of a picture."""
        return self.ids[index]

    def metadata(self, index: int) -> dict[str, Any]:
        """Return what an item holds beside its picture."""
        return {"label": self.labels[index], "record": record_number(self.ids[index])}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` (values in [0, 1]), ``label`` and ``record``."""
        image, epoch = self.images[index].float().div(self.white), getattr(index, "epoch", None)
        if epoch is not None and self.keyed_by_epoch:
            generator = np.random.default_rng((self.seed, epoch, record_number(self.ids[index])))
            image = shift_and_mirror(image, self.shift, self.mirror, generator)
        return {"image": image, **self.metadata(index)}


def training_loader(
    data: L.LightningDataModule,
    dataset: Any,
    *,
    batch_size: int,
    num_workers: int,
    drop_last: bool,
    pin_memory: bool,
    seed: int,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Return all records of a dataset, shuffled, in a loader that resumes in the middle of an epoch.

    Args:
        data: Whose trainer tells rank and progress.
        dataset: All records.
        batch_size: Records a batch and process.
        num_workers: Loader processes.
        drop_last: Drop an incomplete last batch.
        pin_memory: Copy batches to pinned memory, for GPUs.
        seed: Of the order.
        collate_fn: Makes a batch of records; None for PyTorch's own.
    """
    rank, world = rank_and_world(data.trainer)
    sampler = EpochSampler(
        len(dataset), batch_size=batch_size, drop_last=drop_last, seed=seed, rank=rank, world_size=world
    )
    return resumable_loader(
        dataset, sampler, data.trainer, num_workers=num_workers, pin_memory=pin_memory, collate_fn=collate_fn
    )
