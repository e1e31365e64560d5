"""A folder of pictures with one folder a class."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.datamodules.caption_files import PICTURES, SHOWN, CaptionedFile, _files, decode
from lightning_privacy.datamodules.identity import record_number
from lightning_privacy.datamodules.image_caption_folder import _CaptionedPictures
from lightning_privacy.datamodules.labelled_pictures import training_loader
from lightning_privacy.errors import InputError

__all__ = ["ImageFolder", "LabelledFiles", "identify_pictures", "read_classes"]


def identify_pictures(paths: Sequence[Path], check: bool = True) -> tuple[list[str], list[str]]:
    """Read pictures, many at a time.

    Args:
        paths: The files.
        check: Decode them too.

    Returns:
        The sha256 of each file (empty where it cannot be read), and one line a file that cannot be read.
    """
    problems: list[str] = []

    def identify(path: Path) -> str:
        try:
            data = path.read_bytes()
            if check:
                decode(data)
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
            # PIL raises SyntaxError for broken PNG chunks.
            problems.append(f"{path}: corrupt picture: {error}")
            return ""
        return hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(identify, paths)), sorted(problems)


def read_classes(root: str | Path, check: bool = True) -> tuple[list[tuple[CaptionedFile, int]], list[str]]:
    """List the pictures of a folder with their classes and identities.

    Args:
        root: Holds one folder a class, each searched recursively; names that start with a dot are skipped.
        check: Decode every picture.

    Returns:
        Pictures with their class's number, in the order of their paths; the class names, in the order of their numbers
        (that of the names' code points).

    Raises:
        InputError: Everything that is wrong with the folder, by path: the first ten problems and their number.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise InputError(f"ImageFolder: {root} is not a folder; set `root` to one that holds one folder a class.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [
        (path, label)
        for label, folder in enumerate(folders)
        for path in _files(folder)
        if path.suffix.lower() in PICTURES
    ]
    if not found:
        raise InputError(
            f"ImageFolder: {root} holds no folders with pictures; put the pictures into one folder a class."
        )
    filled = {label for _, label in found}
    problems = [f"{folder}: no pictures" for label, folder in enumerate(folders) if label not in filled]
    problems += [
        f"{path}: lies in no class's folder"
        for path in sorted(root.iterdir())
        if path.is_file() and path.suffix.lower() in PICTURES and not path.name.startswith(".")
    ]
    ids, corrupt = identify_pictures([path for path, _ in found], check)
    problems += corrupt
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        rest = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(
            f"ImageFolder: {len(problems)} problem(s) in {root}:{listed}{rest}\nMend or remove these files and folders."
        )
    names = [folder.name for folder in folders]
    files = [CaptionedFile(path, names[label], each) for (path, label), each in zip(found, ids, strict=True)]
    return [(file, label) for file, (_, label) in zip(files, found, strict=True)], names


class LabelledFiles(Dataset[dict[str, Any]]):
    """Pictures on disk with classes, decoded on demand; an index that knows its epoch is augmented, a plain one is raw.

    Args:
        files: Pictures and their classes.
        size: Side in pixels: the shorter side is resized to it and a square is cut.
        augment: While training, cut the square anywhere and mirror half of the pictures.
        seed: Augmentation is a function of this, the epoch and the file.
        extra: Further whole numbers of each picture, by name.
        mirror: Whether augmentation mirrors.
    """

    def __init__(
        self,
        files: Sequence[tuple[CaptionedFile, int]],
        size: int,
        augment: bool = False,
        seed: int = 0,
        extra: dict[str, list[int]] | None = None,
        mirror: bool = True,
    ) -> None:
        self.labels, self.extra = [label for _, label in files], extra or {}
        self.pictures = _CaptionedPictures([file for file, _ in files], size, augment, augment and mirror, seed)
        self.keyed_by_epoch = self.pictures.keyed_by_epoch

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def record_id(self, index: int) -> str:
        """Return the sha256 of a file."""
        return self.pictures.record_id(index)

    def metadata(self, index: int) -> dict[str, Any]:
        """Return what an item holds beside its picture."""
        known = {name: values[index] for name, values in self.extra.items()}
        return {"label": self.labels[index], **known, "record": record_number(self.record_id(index))}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` (3 channels, values in [0, 1]), ``label``, what is extra, and ``record``."""
        return {"image": self.pictures[index]["image"], **self.metadata(index)}


class ImageFolder(L.LightningDataModule):
    """Pictures in one folder a class.

    Batches are ``{"image": (batch, 3, size, size) in [0, 1], "label": class, "record": 63-bit identity}``. Classes are
    numbered in the order of their names; ``class_names`` holds them after ``setup``. Every picture is decoded once at the
    start, and everything wrong is reported together, by path. The shorter side is resized to ``size`` and the middle
    square is cut. A record's identity is the sha256 of the file. Training resumes exactly in the middle of an epoch.

    Args:
        root: The folder; names that start with a dot are skipped.
        size: Side in pixels.
        batch_size: Pictures a batch and process.
        num_workers: Loader processes.
        augment: While training, cut the square anywhere and mirror half of the pictures; a function of (seed, epoch,
            file).
        drop_last: Drop an incomplete last batch.
        pin_memory: Copy batches to pinned memory, for GPUs.
        seed: Of the training order and the augmentation.

    Raises:
        InputError: At ``prepare_data``: no class folders, an empty one, or corrupt files.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 224,
        batch_size: int = 32,
        num_workers: int = 4,
        augment: bool = False,
        drop_last: bool = False,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.size, self.batch_size, self.num_workers = Path(root), size, batch_size, num_workers
        self.augment, self.drop_last, self.pin_memory, self.seed = augment, drop_last, pin_memory, seed
        self.files: list[tuple[CaptionedFile, int]] = []
        self.class_names: list[str] = []
        self.dataset: LabelledFiles | None = None

    def prepare_data(self) -> None:
        """Read and decode every file (one process a machine)."""
        self.files, self.class_names = read_classes(self.root)

    def setup(self, stage: str) -> None:
        """List the files where ``prepare_data`` ran in another process."""
        if not self.files:
            # That process has decoded them; here identities are enough.
            checked = self.trainer is not None and self.trainer.local_rank != 0
            self.files, self.class_names = read_classes(self.root, check=not checked)
        self.dataset = LabelledFiles(self.files, self.size, self.augment, self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all pictures, shuffled."""
        if self.dataset is None:
            self.setup("fit")
        return training_loader(
            self,
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            drop_last=self.drop_last,
            pin_memory=self.pin_memory,
            seed=self.seed,
        )
