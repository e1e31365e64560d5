"""A folder of captioned pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.datamodules.caption_files import CaptionedFile, decode, read_folder
from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.identity import record_number
from lightning_privacy.datamodules.resumable_loader import rank_and_world, resumable_loader
from lightning_privacy.errors import InputError

__all__ = ["ImageCaptionFolder"]


class _CaptionedPictures(Dataset[dict[str, Any]]):
    """Decodes on demand; an index that knows its epoch is cropped and mirrored at random, a plain one is not."""

    def __init__(self, files: Sequence[CaptionedFile], size: int, random_crop: bool, flip: bool, seed: int) -> None:
        self.files, self.size, self.random_crop, self.flip, self.seed = list(files), size, random_crop, flip, seed
        self.keyed_by_epoch = random_crop or flip

    def __len__(self) -> int:
        return len(self.files)

    def record_id(self, index: int) -> str:
        return self.files[index].record_id

    def metadata(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        return {"caption": file.caption, "record": record_number(file.record_id)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.files[index].path
        try:
            image = decode(path.read_bytes())
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(
                f"ImageCaptionFolder: {path} could be read at the start and now cannot: {error}"
            ) from error
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        # PIL's filters widen with the scale, so this does not alias.
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top, mirror = (width - self.size) // 2, (height - self.size) // 2, False
        if (epoch := getattr(index, "epoch", None)) is not None and self.keyed_by_epoch:
            rng = np.random.default_rng((self.seed, epoch, record_number(self.files[index].record_id)))
            # Always drawn, so that switching one off leaves the other as it was.
            places, coin = rng.random(2), rng.random()
            if self.random_crop:
                left, top = int(places[0] * (width - self.size + 1)), int(places[1] * (height - self.size + 1))
            mirror = self.flip and coin < 0.5
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)))
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)
        return {"image": tensor.flip(2) if mirror else tensor.contiguous(), **self.metadata(index)}


class ImageCaptionFolder(L.LightningDataModule):
    """Pictures in a folder with a ``metadata.jsonl`` (Hugging Face imagefolder) or a ``.txt`` beside each.

    Batches are ``{"image": (batch, 3, size, size) in [0, 1], "caption": list of str, "record": 63-bit identity}``. The
    folder is searched recursively; a line of ``metadata.jsonl`` is ``{"file_name": "a.jpg", "text": "..."}`` with the
    path relative to that file, and goes before a ``.txt``. Every picture is decoded once at the start, and everything
    wrong is reported together, by path. The shorter side is resized to ``size`` and a square is cut. A record's
    identity is the sha256 of the file. Training resumes exactly in the middle of an epoch.

    Args:
        root: The folder.
        size: Side in pixels.
        batch_size: Pictures a batch and process.
        num_workers: Loader processes.
        caption_key: Key of the caption in ``metadata.jsonl``; null takes ``text``, else ``caption``.
        random_crop: While training, cut the square anywhere instead of in the middle; a function of (seed, epoch,
        file). flip: While training, mirror half of the pictures; likewise.
        drop_last: Drop an incomplete last batch.
        pin_memory: Copy batches to pinned memory, for GPUs.
        seed: Of the training order, crops and mirroring.

    Raises:
        InputError: At ``prepare_data``: missing or corrupt files, missing or empty captions.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 512,
        batch_size: int = 4,
        num_workers: int = 4,
        caption_key: str | None = None,
        random_crop: bool = False,
        flip: bool = False,
        drop_last: bool = False,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.size, self.batch_size, self.num_workers = Path(root), size, batch_size, num_workers
        self.caption_key, self.random_crop, self.flip, self.drop_last = caption_key, random_crop, flip, drop_last
        self.pin_memory, self.seed = pin_memory, seed
        self.files: list[CaptionedFile] = []

    def prepare_data(self) -> None:
        """Read and decode every file (one process a machine)."""
        self.files = read_folder(self.root, self.caption_key)

    def setup(self, stage: str) -> None:
        """List the files where ``prepare_data`` ran in another process."""
        if not self.files:
            # That process has decoded them; here identities are enough.
            checked = self.trainer is not None and self.trainer.local_rank != 0
            self.files = read_folder(self.root, self.caption_key, check=not checked)
        self.dataset = _CaptionedPictures(self.files, self.size, self.random_crop, self.flip, self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all pictures, shuffled."""
        rank, world = rank_and_world(self.trainer)
        sampler = EpochSampler(
            len(self.files),
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            seed=self.seed,
            rank=rank,
            world_size=world,
        )
        options = {"num_workers": self.num_workers, "pin_memory": self.pin_memory}
        return resumable_loader(self.dataset, sampler, self.trainer, **options)
