"""A dataset whose pictures come with their edits, made before; raw and edited ones pass through one geometry."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from lightning_privacy.core.randomness import derive_seed
from lightning_privacy.datamodules.identity import item_digest, record_number
from lightning_privacy.datamodules.labelled_pictures import draw_move, shift_and_mirror
from lightning_privacy.datamodules.pool import innermost
from lightning_privacy.datamodules.target_geometry import has_boxes, mirror_target
from lightning_privacy.editors.blending import to_grid
from lightning_privacy.editors.stored import EditStore, picture_key
from lightning_privacy.errors import InputError

__all__ = ["LockedPictures", "picture_of"]

KEYED = "edited"
"""Name of the store with the right key's edits; all others are decoys."""


def picture_of(item: Any, dataset: Any, index: int) -> Float[Tensor, "channels height width"]:
    """Return the picture of an item: ``item["image"]``, or the first of a tuple.

    Raises:
        InputError: there is none.
    """
    found = item.get("image") if isinstance(item, Mapping) else item[0] if isinstance(item, list | tuple) else None
    if isinstance(found, Tensor) and found.ndim == 3 and found.is_floating_point():
        return found
    raise InputError(
        f"Record {index} of {type(dataset).__name__} holds no picture that can be edited: it must be a float tensor (channels, "
        'height, width) in [0, 1] under `item["image"]` or first in the tuple. Convert it in the data (`ToTensor`).'
    )


class LockedPictures(Dataset[Any]):
    """Pictures beside their edits; identity and class stay those of the raw record.

    An item keeps its form. A mapping gets the edited picture as ``image``, the raw one as ``raw`` and, with decoys, another
    key's edit as ``decoy``; to a tuple, whose first is the edited one, they are appended. An index that knows its epoch
    is moved and mirrored, all pictures of the item alike, and draws its decoy; a plain one has the first decoy.

    Args:
        dataset: The raw records; not augmented.
        indices: Which of them.
        stores: Edits by name: ``edited``, and decoys.
        locked: Whether ``image`` is the edited picture, or the raw one with the edited as ``edited``.
        on_grid: Whether raw pictures too are rounded to multiples of 1/255.
        crop: Side of the square that is cut from the middle; None for all.
        shift: Most pixels by which pictures move while training, black coming in.
        mirror: Whether half of them are mirrored while training.
        seed: Of augmentation and decoys.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Sequence[int],
        stores: Mapping[str, EditStore],
        *,
        locked: bool = True,
        on_grid: bool = True,
        crop: int | None = None,
        shift: int = 0,
        mirror: bool = False,
        seed: int = 0,
    ) -> None:
        self.dataset, self.indices, self.stores = dataset, list(indices), dict(stores)
        self.locked, self.on_grid, self.crop = locked, on_grid, crop
        self.shift, self.mirror, self.seed = shift, mirror, seed
        self.keyed_by_epoch = bool(shift or mirror or len(self.stores) > 1)
        self._ids: dict[int, str] = {}

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.indices)

    def record_id(self, index: int) -> str:
        """Return the identity of the raw record."""
        base, place = innermost(self.dataset, self.indices[index])
        if callable(getattr(base, "record_id", None)):
            return base.record_id(place)
        if index not in self._ids:
            self._ids[index] = item_digest(self.dataset[self.indices[index]])
        return self._ids[index]

    def metadata(self, index: int) -> Any:
        """Return what the raw dataset tells of a record without its picture, or the raw item."""
        base, place = innermost(self.dataset, self.indices[index])
        told = getattr(base, "metadata", None)
        return told(place) if callable(told) else self.dataset[self.indices[index]]

    def __getitem__(self, index: int) -> Any:
        """Return one item with its edits.

        Raises:
            InputError: the picture is not the one that was edited.
        """
        place, epoch = self.indices[int(index)], getattr(index, "epoch", None)
        item = self.dataset[place]
        raw = picture_of(item, self.dataset, place)
        number = self._number(item, int(index))
        names = [KEYED, *self._decoys(number, epoch)]
        key, shape = picture_key(raw), tuple(raw.shape)
        edits = [self._edit(name, key, shape, place) for name in names]
        grid = "round" if self.on_grid else "none"
        together = torch.cat([to_grid(raw.float()[None], grid)[0], *edits])
        if has_boxes(item):
            item = self._move_boxes(item, shape[2], number, epoch)
        pictures = self._geometry(together, number, epoch).split(shape[0])
        return self._item(item, *pictures)

    def _move_boxes(self, item: Any, width: int, number: int, epoch: int | None) -> Any:
        if self.crop is not None or self.shift:
            raise InputError(
                "LockedDataModule: `crop` and `shift` would cut objects off pictures that have boxes. Leave them out, and give "
                "the data the size that the model is to see; `mirror` moves boxes and masks along."
            )
        if epoch is None or not draw_move(0, self.mirror, np.random.default_rng((self.seed, epoch, number))).mirrored:
            return item
        if isinstance(item, Mapping):
            return {**item, "target": mirror_target(item["target"], width)}
        return (item[0], mirror_target(item[1], width), *item[2:])

    def _number(self, item: Any, index: int) -> int:
        known = item.get("record") if isinstance(item, Mapping) else None
        return known if isinstance(known, int) else record_number(f"{derive_seed('record', index):016x}")

    def _decoys(self, number: int, epoch: int | None) -> list[str]:
        kinds = sorted(set(self.stores) - {KEYED})
        return (
            [kinds[0 if epoch is None else derive_seed(self.seed, "decoy", epoch, number) % len(kinds)]]
            if kinds
            else []
        )

    def _edit(self, name: str, key: str, shape: tuple[int, ...], place: int) -> Float[Tensor, "channels height width"]:
        found = self.stores[name].get(key, shape)
        if found is None:
            where = self.stores[name].path(key)
            raise InputError(
                f"There is no {name} edit of record {place} of {type(self.dataset).__name__} ({where or 'in memory'}). Either "
                "the picture is another one each time it is read (take random augmentation out of the data; `shift` and "
                "`mirror` of LockedDataModule do it after the edit), or the file was deleted during the run."
            )
        return found

    def _geometry(
        self, together: Float[Tensor, "all height width"], number: int, epoch: int | None
    ) -> Float[Tensor, "all rows columns"]:
        if self.crop is not None:
            top, left = ((side - self.crop) // 2 for side in together.shape[1:])
            if top < 0 or left < 0:
                raise InputError(
                    f"LockedDataModule: `crop` is {self.crop} and a picture has {together.shape[1]} by {together.shape[2]} "
                    "pixels. Set `crop` to at most that, or larger pictures in the data."
                )
            together = together[:, top : top + self.crop, left : left + self.crop]
        if epoch is None or not (self.shift or self.mirror):
            return together.contiguous()
        generator = np.random.default_rng((self.seed, epoch, number))
        return shift_and_mirror(together, self.shift, self.mirror, generator)

    def _item(self, item: Any, raw: Tensor, edited: Tensor, *decoys: Tensor) -> Any:
        shown = edited if self.locked else raw
        if isinstance(item, Mapping):
            more: dict[str, Tensor] = dict(zip(("decoy",), decoys, strict=False))  # one or none
            if not self.locked:
                more["edited"] = edited
            return {**item, "image": shown, "raw": raw, **more}
        return (shown, *item[1:], raw, *decoys)
