"""Synthetic pictures for tests: deterministic, captioned, labelled, made from numbers alone."""

from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.identity import item_digest, record_number
from lightning_privacy.datamodules.resumable_loader import rank_and_world, resumable_loader

__all__ = ["ToyImages"]

COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 1.0, 0.1), "blue": (0.1, 0.1, 1.0), "yellow": (1.0, 1.0, 0.1)}


class _Discs(Dataset[dict[str, Any]]):
    def __init__(self, n: int, size: int, seed: int) -> None:
        rows, columns = np.mgrid[:size, :size] / size
        names = list(COLOURS)
        self.images, self.labels, self.captions = torch.empty(n, 3, size, size), [], []
        for index in range(n):
            rng = np.random.default_rng((seed, index))
            label = index % len(names)
            x, y, radius = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.3)
            disc = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2)[None]
            picture = np.where(disc, np.array(COLOURS[names[label]])[:, None, None], rng.uniform(0.2, 0.5))
            self.images[index] = torch.from_numpy((picture + rng.normal(0, 0.05, picture.shape)).clip(0, 1))
            self.labels.append(label)
            self.captions.append(f"a {names[label]} disc")
        self.ids = [item_digest(image) for image in self.images]

    def __len__(self) -> int:
        return len(self.ids)

    def record_id(self, index: int) -> str:
        return self.ids[index]

    def metadata(self, index: int) -> dict[str, Any]:
        return {"caption": self.captions[index], "label": self.labels[index], "record": record_number(self.ids[index])}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], **self.metadata(index)}


class ToyImages(L.LightningDataModule):
    """Noisy coloured discs; batches are like those of `Faces`.

    Args:
        n: Pictures, 4 classes in turn.
        size: Side in pixels.
        batch_size: Pictures a batch.
        num_workers: Loader processes.
        seed: Every picture is a function of this and its index.
        drop_last: Drop an incomplete last batch.

    Example:
        >>> data = ToyImages(n=4)
        >>> data.setup("fit")
        >>> data.train_dataloader().dataset[0]["caption"]
        'a red disc'
    """

    def __init__(
        self,
        n: int = 64,
        size: int = 16,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        self.n, self.size, self.batch_size = n, size, batch_size
        self.num_workers, self.seed, self.drop_last = num_workers, seed, drop_last

    def setup(self, stage: str) -> None:
        """Make the pictures."""
        self.dataset = _Discs(self.n, self.size, self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all pictures, shuffled."""
        rank, world = rank_and_world(self.trainer)
        sampler = EpochSampler(
            self.n, batch_size=self.batch_size, drop_last=self.drop_last, seed=self.seed, rank=rank, world_size=world
        )
        return resumable_loader(self.dataset, sampler, self.trainer, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return all pictures in order."""
        return DataLoader(self.dataset, self.batch_size, num_workers=self.num_workers)
