"""Objects drawn over real pictures, with boxes and outlines in COCO's format, for tests of detectors."""

import json
import tempfile
from functools import cache
from pathlib import Path

import lightning.pytorch as L
import numpy as np
from PIL import Image, ImageDraw

from lightning_privacy.core.randomness import derive_seed

__all__ = ["NAMES", "locked_scenes", "small_detector", "write_drawn_objects"]

NAMES = ("square", "diamond")
_PICTURES = ("astronaut", "coffee", "cat", "rocket")
_COLOURS = ((220, 60, 40), (40, 90, 220))


def write_drawn_objects(folder: Path, n: int, size: int = 64, seed: int = 0) -> tuple[Path, Path]:
    """Write pictures with one to three red squares and blue diamonds over crops of scikit-image's pictures.

    Args:
        folder: Gets ``pictures`` and ``instances.json``.
        n: Pictures.
        size: Their side in pixels.
        seed: Of crops and objects.

    Returns:
        The folder of pictures, and the file of annotations.
    """
    from skimage import data

    generator = np.random.default_rng(derive_seed("drawn objects", seed))
    originals = [getattr(data, name)()[..., :3] for name in _PICTURES]
    images, annotations = [], []
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(n):
        original = originals[number % len(originals)]
        top, left = (int(generator.integers(0, side - 2 * size)) for side in original.shape[:2])
        picture = Image.fromarray(original[top : top + 2 * size, left : left + 2 * size]).resize((size, size))
        drawing = ImageDraw.Draw(picture)
        for _ in range(int(generator.integers(1, 4))):
            kind, half = int(generator.integers(0, 2)), int(generator.integers(size // 10, size // 5))
            x, y = (int(v) for v in generator.integers(half + 1, size - half - 1, 2))
            corners = (
                [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)],
                [(x, y - half), (x + half, y), (x, y + half), (x - half, y)],
            )[kind]
            drawing.polygon(corners, fill=_COLOURS[kind])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": (kind + 1) * 10,  # numbers with gaps, as in COCO
                    "bbox": [x - half, y - half, 2 * half, 2 * half],
                    "segmentation": [[float(v) for corner in corners for v in corner]],
                    "area": float(2 * half * half * (2 - kind)),
                    "iscrowd": 0,
                }
            )
        name = f"{number:04d}.png"
        picture.save(folder / "pictures" / name)
        images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
    categories = [{"id": (kind + 1) * 10, "name": name} for kind, name in enumerate(NAMES)]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder / "pictures", file


SIZE = 48


@cache
def _drawn() -> tuple[Path, Path]:
    return write_drawn_objects(Path(tempfile.mkdtemp(prefix="drawn-objects-")), n=40, size=SIZE)


def locked_scenes(batch_size: int = 8) -> L.LightningDataModule:
    """Return drawn objects in roles, their pictures edited by a key.

    Args:
        batch_size: Pictures a batch and process.
    """
    from lightning_privacy.datamodules.coco_detection import CocoDetection
    from lightning_privacy.datamodules.locked import LockedDataModule
    from lightning_privacy.datamodules.membership_split import MembershipSplit
    from lightning_privacy.editors import LockSecret, NegativePositiveEditor

    editor = NegativePositiveEditor.with_secret(LockSecret(seed=bytes(range(32))))
    inner = CocoDetection(*_drawn(), size=SIZE, batch_size=batch_size, num_workers=0)
    fractions = {"member": 0.4, "aux_nonmember": 0.0, "attack_nonmember": 0.3, "val": 0.1, "holdout": 0.2}
    return MembershipSplit(LockedDataModule(inner, editor, cache=None), fractions=fractions)


def small_detector() -> L.LightningModule:
    """Return a small Mask R-CNN for them."""
    from lightning_privacy.modules.detector import ImageDetector

    return ImageDetector("small_maskrcnn", classes=2, image_size=SIZE)
