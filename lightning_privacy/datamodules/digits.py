"""The handwritten digits that come with scikit-learn."""

from importlib.util import find_spec
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

from lightning_privacy.datamodules.labelled_pictures import LabelledPictures, training_loader
from lightning_privacy.errors import InputError

__all__ = ["Digits"]

WHITE = 16  # scikit-learn's pixels count ink from 0 to 16


class Digits(L.LightningDataModule):
    """1,797 handwritten digits of 8 by 8 pixels, 10 classes, one channel; they come with scikit-learn.

    Batches are ``{"image": (batch, 1, 8, 8) in [0, 1], "label": digit, "record": 63-bit identity}``. Training resumes
    exactly in the middle of an epoch.

    Args:
        batch_size: Pictures a batch and process.
        num_workers: Loader processes.
        augment: While training, move each digit by up to one pixel; a function of (seed, epoch, picture).
        drop_last: Drop an incomplete last batch.
        seed: Of the training order and the augmentation.

    Raises:
        InputError: At ``setup``, scikit-learn is not installed.

    Example:
        >>> data = Digits(batch_size=4)
        >>> data.setup("fit")
        >>> len(data.dataset), next(iter(data.train_dataloader()))["image"].shape
        (1797, torch.Size([4, 1, 8, 8]))

    Source:
        Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998: its test part.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.augment = batch_size, num_workers, augment
        self.drop_last, self.seed = drop_last, seed
        self.dataset: LabelledPictures | None = None

    def setup(self, stage: str) -> None:
        """Read the pictures; they come inside a wheel."""
        if self.dataset is not None:
            return
        if find_spec("sklearn") is None:
            raise InputError(
                "Digits reads the pictures that come with scikit-learn, which is not installed; run `pip install "
                "lightning-privacy[demo]`, or `pip install scikit-learn`."
            )
        from sklearn.datasets import load_digits

        found: Any = load_digits()
        images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(found.target).long()
        self.dataset = LabelledPictures(images, labels, WHITE, self.augment, shift=1, seed=self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all pictures, shuffled."""
        self.setup("fit")
        return training_loader(
            self,
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            drop_last=self.drop_last,
            pin_memory=False,
            seed=self.seed,
        )
