"""Pictures with objects in COCO's format, for detectors."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.datamodules.caption_files import decode
from lightning_privacy.datamodules.coco_files import AnnotatedFile, Annotations, read_annotations
from lightning_privacy.datamodules.identity import record_number
from lightning_privacy.datamodules.image_folder import identify_pictures
from lightning_privacy.datamodules.labelled_pictures import training_loader
from lightning_privacy.datamodules.letterbox import letterbox_masks, letterbox_picture
from lightning_privacy.errors import InputError

__all__ = ["CocoDetection", "CocoPictures", "collate_objects"]

SHOWN = 10
_SMALLEST = 1.0  # pixels after resizing, below which a side cannot be found


class CocoPictures(Dataset[dict[str, Any]]):
    """Pictures with their objects, resized into a square with nothing cut off and nothing stretched.

    A record's identity is the sha256 of its file.

    Args:
        files: The pictures.
        ids: Their identities.
        size: Side of the square in pixels.
        masks: Whether outlines are read too.
    """

    def __init__(self, files: Sequence[AnnotatedFile], ids: Sequence[str], size: int, masks: bool) -> None:
        self.files, self.ids, self.size, self.masks = list(files), list(ids), size, masks

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.files)

    def record_id(self, index: int) -> str:
        """Return the sha256 of a file."""
        return self.ids[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` (3, size, size) in [0, 1], ``target`` (``boxes``, ``labels``, ``masks``) and ``record``.

        Raises:
            InputError: the picture cannot be read, or has another size than its annotations say.
        """
        file = self.files[index]
        try:
            picture = decode(file.path.read_bytes())
        except (OSError, ValueError, SyntaxError) as wrong:
            raise InputError(f"{file.path}: corrupt picture: {wrong}") from wrong
        if picture.size != file.size:
            raise InputError(
                f"{file.path} has {picture.size[0]} by {picture.size[1]} pixels, and its annotations are for {file.size[0]} by "
                f"{file.size[1]}: they would not lie on the objects. Mend the annotations, or put the original picture back."
            )
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255)
        image, scale = letterbox_picture(pixels, self.size)
        return {"image": image, "target": self._target(file, scale), "record": record_number(self.ids[index])}

    def _target(self, file: AnnotatedFile, scale: float) -> dict[str, Tensor]:
        width, height = file.size
        boxes, labels, outlines = [], [], []
        for thing in file.things:
            x, y, wide, high = thing.box
            corners = max(x, 0.0), max(y, 0.0), min(x + wide, float(width)), min(y + high, float(height))
            box = [scale * corner for corner in corners]
            if min(box[2] - box[0], box[3] - box[1]) >= _SMALLEST:
                boxes.append(box)
                labels.append(thing.label)
                outlines.append(thing.segmentation)
        target = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.long),
        }
        if self.masks:
            drawn = [_outline(each, file) for each in outlines]
            stacked = torch.stack(drawn) if drawn else torch.zeros(0, height, width, dtype=torch.uint8)
            target["masks"] = letterbox_masks(stacked, self.size)
        return target


def _outline(segmentation: Any, file: AnnotatedFile) -> Tensor:
    """Return a mask of the file's size, by pycocotools."""
    try:
        from pycocotools import mask
    except ModuleNotFoundError as absent:
        raise InputError(
            "Outlines in COCO's format need pycocotools: pip install 'lightning-privacy[detection]', or set `masks: false`."
        ) from absent
    width, height = file.size
    if not segmentation:
        raise InputError(
            f"{file.path} has an object without a `segmentation`; set `masks: false` for a detector without masks."
        )
    if isinstance(segmentation, list):
        coded = mask.merge(mask.frPyObjects(segmentation, height, width))
    else:
        counts = segmentation["counts"]
        coded = mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
    return torch.from_numpy(mask.decode(coded).astype(np.uint8))


def collate_objects(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a batch: pictures stacked, numbers as a tensor, targets as a list.

    Args:
        items: Records with the same keys.
    """
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if isinstance(values[0], Tensor):
            batch[key] = torch.stack(values)
        elif isinstance(values[0], int | float):
            batch[key] = torch.tensor(values)
        else:
            batch[key] = values
    return batch


class CocoDetection(L.LightningDataModule):
    """Pictures with objects in COCO's format.

    Pictures become squares with nothing cut off; boxes and outlines move with them. Nothing is augmented: put `mirror` of
    `LockedDataModule` after the edit, or augment in the module. Inside `MembershipSplit` the training file is the pool.

    Args:
        pictures: Folder of the training pictures.
        annotations: Their annotations, such as ``instances_train2017.json``.
        val_pictures: Folder of validation pictures; null where a `MembershipSplit` makes them.
        val_annotations: Their annotations.
        size: Side of the squares in pixels.
        masks: Whether outlines are read too, for Mask R-CNN.
        batch_size: Pictures a batch and process.
        num_workers: Loader processes.
        pin_memory: Copy batches to pinned memory, for GPUs.
        check: Decode every picture before training.
        seed: Of the training order.

    Raises:
        InputError: Of the validation files one is given without the other; at ``setup``, see `read_annotations`, and corrupt
            pictures.
    """

    def __init__(
        self,
        pictures: str | Path,
        annotations: str | Path,
        val_pictures: str | Path | None = None,
        val_annotations: str | Path | None = None,
        size: int = 512,
        masks: bool = True,
        batch_size: int = 8,
        num_workers: int = 4,
        pin_memory: bool = False,
        check: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (val_pictures is None) != (val_annotations is None):
            raise InputError("CocoDetection: give both `val_pictures` and `val_annotations`, or neither.")
        if size < 1 or batch_size < 1:
            raise InputError(f"CocoDetection needs size >= 1 and batch_size >= 1, but got {size}, {batch_size}.")
        self.pictures, self.annotations = Path(pictures), Path(annotations)
        self.size, self.masks, self.batch_size, self.num_workers = size, masks, batch_size, num_workers
        self.pin_memory, self.check, self.seed = pin_memory, check, seed
        self.dataset: CocoPictures | None = None
        self.class_names: Sequence[str] = ()
        if val_pictures is not None and val_annotations is not None:
            # bound only where there is something to validate on, or Lightning would expect it
            self.val_dataloader = partial(self._val_dataloader, Path(val_pictures), Path(val_annotations))

    def setup(self, stage: str) -> None:
        """Read the annotations, and every picture's identity."""
        if self.dataset is None:
            found = read_annotations(self.pictures, self.annotations)
            self.dataset, self.class_names = self._dataset(found), found.names

    def _dataset(self, found: Annotations) -> CocoPictures:
        ids, corrupt = identify_pictures([file.path for file in found.files], self.check)
        if corrupt:
            listed = "".join(f"\n  {problem}" for problem in corrupt[:SHOWN])
            raise InputError(f"CocoDetection: {len(corrupt)} picture(s) cannot be read:{listed}\nMend or remove them.")
        return CocoPictures(found.files, ids, self.size, self.masks)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all training pictures, shuffled."""
        self.setup("fit")
        return training_loader(
            self,
            self.dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            drop_last=False,
            pin_memory=self.pin_memory,
            seed=self.seed,
            collate_fn=collate_objects,
        )

    def _val_dataloader(self, pictures: Path, annotations: Path) -> DataLoader[Any]:
        dataset = self._dataset(read_annotations(pictures, annotations))
        return DataLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_objects,
            pin_memory=self.pin_memory,
        )
