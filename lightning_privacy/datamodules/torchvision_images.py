"""Public data sets of pictures by their names in torchvision."""

import tarfile
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_privacy.datamodules.caption_files import CaptionedFile
from lightning_privacy.datamodules.image_folder import LabelledFiles, identify_pictures
from lightning_privacy.datamodules.labelled_pictures import LabelledPictures, training_loader
from lightning_privacy.errors import InputError

__all__ = ["TorchvisionImages", "lacking_files"]

# torchvision is imported inside functions: it takes a second.

Name = Literal["CIFAR10", "CIFAR100", "CelebA", "FashionMNIST", "MNIST", "OxfordIIITPet", "SVHN"]
# Most pixels of a shift, and whether mirroring keeps the class; 4 and yes on CIFAR: arXiv 1512.03385, section 4.2.
AUGMENTATION = {
    "CIFAR10": (4, True),
    "CIFAR100": (4, True),
    "FashionMNIST": (2, True),
    "MNIST": (2, False),
    "SVHN": (4, False),
}
SIDES = {"CIFAR10": 32, "CIFAR100": 32, "FashionMNIST": 28, "MNIST": 28, "SVHN": 32}
FILE_SIDES = {"CelebA": 64, "OxfordIIITPet": 224}  # chosen here: CelebA's usual in attribute attacks, ImageNet's side
FAILED_DOWNLOADS = (OSError, RuntimeError, ImportError, ValueError, HTTPException, tarfile.TarError, zipfile.BadZipFile)
SHOWN = 12


def _files(name: str, root: Path) -> list[tuple[Path, str | None]]:
    """Return the files and folders that torchvision reads, with their md5 where it is published."""
    from torchvision import datasets

    kind: Any = getattr(datasets, name)
    if name.startswith("CIFAR"):
        listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        return [(root / kind.base_folder / file, md5) for file, md5 in listed]
    if name.endswith("MNIST"):
        return [(root / name / "raw" / Path(file).stem, None) for file, _ in kind.resources]
    if name == "SVHN":
        _, file, md5 = kind.split_list["train"]
        return [(root / file, md5)]
    if name == "OxfordIIITPet":
        base = root / "oxford-iiit-pet"
        return [(base / "images", None), (base / "annotations" / "trainval.txt", None)]
    listed = [(file, md5) for _, md5, file in kind.file_list if not file.endswith(".zip")]
    return [(root / kind.base_folder / file, md5) for file, md5 in [*listed, ("img_align_celeba", None)]]


def lacking_files(name: str, root: str | Path) -> list[str]:
    """Return the files of a data set that are absent, or that differ from their published md5.

    Args:
        name: A data set's class in torchvision.
        root: Folder that holds torchvision's data sets.

    Returns:
        One line a file; none where the data set is complete.
    """
    from torchvision.datasets.utils import check_integrity

    lines: list[str] = []
    for path, md5 in _files(name, Path(root).expanduser()):
        if not path.exists():
            lines.append(f"{path}: missing")
        elif md5 is not None and not check_integrity(path, md5):
            lines.append(f"{path}: changed or incomplete (its md5 is not {md5})")
    return lines


def _incomplete(name: str, root: Path, lacking: list[str], why: str) -> InputError:
    listed = "".join(f"\n  {line}" for line in lacking[:SHOWN])
    rest = f"\n  ... and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    return InputError(
        f"TorchvisionImages: {name} is not complete under root {root}{why}:{listed}{rest}\nSet `root` to where it is, or "
        f'fetch it where there is a network with `python -c "from torchvision.datasets import {name}; '
        f"{name}('data', download=True)\"` and copy the folder here."
    )


def _open(name: str, root: Path) -> Any:
    """Return torchvision's data set of the training part.

    torchvision reads CIFAR's batches with pickle, but compares every one with its published md5 first; MNIST, SVHN,
    the pets and CelebA hold no pickles.
    """
    from torchvision import datasets

    part: dict[str, Any] = {
        "OxfordIIITPet": {"split": "trainval"},
        "SVHN": {"split": "train"},
        "CelebA": {"split": "train"},
    }
    try:
        return getattr(datasets, name)(str(root), **part.get(name, {"train": True}))
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"TorchvisionImages: {name} under root {root} cannot be read ({error}); remove its folder and fetch it anew."
        ) from error


def _in_memory(name: str, found: Any) -> tuple[UInt8[Tensor, "n channels height width"], Int[Tensor, " n"]]:
    images = torch.as_tensor(found.data)
    if name.startswith("CIFAR"):
        images = images.permute(0, 3, 1, 2)
    elif name.endswith("MNIST"):
        images = images.unsqueeze(1)
    return images.contiguous(), torch.as_tensor(found.labels if name == "SVHN" else found.targets).long()


def _attribute(found: Any, what: str, attribute: str) -> list[int]:
    names = [name for name in found.attr_names if name]  # the header ends with a blank
    if attribute not in names:
        raise InputError(
            f"TorchvisionImages: CelebA has no attribute `{what}: {attribute}`; it has {', '.join(names)}."
        )
    return found.attr[:, names.index(attribute)].tolist()


class TorchvisionImages(L.LightningDataModule):
    """The training part of a public data set, by its name in torchvision.

    Batches are ``{"image": (batch, channels, side, side) in [0, 1], "label": class, "record": 63-bit identity}``, for
    CelebA with ``sensitive`` beside the label where it is asked for. Training resumes exactly in the middle of an epoch.
    CIFAR's files are pickles and are read only where their md5 is the published one.

    Args:
        name: ``CIFAR10``, ``CIFAR100`` (32 pixels, 3 channels), ``MNIST``, ``FashionMNIST`` (28, 1), ``SVHN`` (32, 3),
            ``OxfordIIITPet`` (37 breeds, 3 channels) or ``CelebA`` (3 channels).
        root: Folder that holds torchvision's data sets.
        download: Fetch what is missing.
        size: Side of the pictures of OxfordIIITPet (null for 224) and CelebA (null for 64); others keep their own.
        target: CelebA's attribute that is the label (0 or 1), such as ``Smiling``.
        sensitive: CelebA's attribute that is to stay private, such as ``Male``; null for none.
        batch_size: Pictures a batch and process.
        num_workers: Loader processes.
        augment: While training, shift or cut at random, and mirror where that keeps the class; a function of (seed,
            epoch, picture).
        drop_last: Drop an incomplete last batch.
        pin_memory: Copy batches to pinned memory, for GPUs.
        seed: Of the training order and the augmentation.

    Raises:
        InputError: At ``prepare_data``: files are missing or changed, by path.
    """

    def __init__(
        self,
        name: Name = "CIFAR10",
        root: str | Path = "data",
        download: bool = True,
        size: int | None = None,
        target: str | None = None,
        sensitive: str | None = None,
        batch_size: int = 128,
        num_workers: int = 2,
        augment: bool = False,
        drop_last: bool = False,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size is not None and size != SIDES.get(name, size):
            raise InputError(f"TorchvisionImages: {name}'s pictures have {SIDES[name]} pixels; leave `size` out.")
        if name == "CelebA" and target is None:
            raise InputError(
                "TorchvisionImages: CelebA needs the attribute that is the label, such as `target: Smiling`."
            )
        if name != "CelebA" and (target or sensitive):
            raise InputError(f"TorchvisionImages: `target` and `sensitive` are CelebA's; leave them out for {name}.")
        self.source, self.root, self.download = name, Path(root).expanduser(), download
        self.size = size or SIDES.get(name) or FILE_SIDES[name]
        self.target, self.sensitive = target, sensitive
        self.batch_size, self.num_workers, self.augment = batch_size, num_workers, augment
        self.drop_last, self.pin_memory, self.seed = drop_last, pin_memory, seed
        self.dataset: LabelledPictures | LabelledFiles | None = None

    def prepare_data(self) -> None:
        """Fetch what is missing (one process a machine)."""
        lacking = lacking_files(self.source, self.root)
        if not lacking:
            return
        if not self.download:
            raise _incomplete(self.source, self.root, lacking, ", and `download` is false")
        from torchvision import datasets

        part = {"SVHN": {"split": "train"}, "CelebA": {"split": "train"}}
        try:
            getattr(datasets, self.source)(str(self.root), download=True, **part.get(self.source, {}))
        except FAILED_DOWNLOADS as error:
            lacking = lacking_files(self.source, self.root) or lacking
            why = f", and fetching it failed ({type(error).__name__}: {error})"
            raise _incomplete(self.source, self.root, lacking, why) from error

    def setup(self, stage: str) -> None:
        """Read the data set."""
        if self.dataset is not None:
            return
        if lacking := lacking_files(self.source, self.root):
            raise _incomplete(self.source, self.root, lacking, "")
        found = _open(self.source, self.root)
        if self.source in SIDES:
            images, labels = _in_memory(self.source, found)
            shift, mirror = AUGMENTATION[self.source]
            options: dict[str, Any] = {"augment": self.augment, "shift": shift, "mirror": mirror, "seed": self.seed}
            self.dataset = LabelledPictures(images, labels, **options)
        else:
            self.dataset = self._on_disk(found)

    def _on_disk(self, found: Any) -> LabelledFiles:
        extra: dict[str, list[int]] = {}
        if self.source == "CelebA":
            folder = self.root / "celeba" / "img_align_celeba"
            paths, labels = [folder / name for name in found.filename], _attribute(found, "target", str(self.target))
            if self.sensitive is not None:
                extra["sensitive"] = _attribute(found, "sensitive", self.sensitive)
        else:
            paths, labels = list(found._images), list(found._labels)
        ids, problems = identify_pictures(paths, check=False)
        if problems:
            raise _incomplete(self.source, self.root, problems, "")
        files = [CaptionedFile(path, "", each) for path, each in zip(paths, ids, strict=True)]
        return LabelledFiles(list(zip(files, labels, strict=True)), self.size, self.augment, self.seed, extra)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all pictures, shuffled."""
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
